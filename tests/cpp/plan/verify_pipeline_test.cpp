#include "plan/verify_pipeline.h"

#include <gtest/gtest.h>

#include <functional>

namespace torchtitan::plan {
namespace {

using K = ActionKind;

Action on(K kind, int64_t stage, int64_t microbatch) {
  return {.kind = kind, .stage = stage, .microbatch = microbatch};
}

Action wait(K kind, int64_t stage, int64_t microbatch) {
  return wait_for(on(kind, stage, microbatch));
}

// Two ranks with a stage each and two microbatches, all forwards first.
std::vector<Program> two_ranks() {
  return {{on(K::kForward, 0, 0),              // 0
           on(K::kSendActivation, 0, 0),       //
           on(K::kForward, 0, 1),              //
           on(K::kSendActivation, 0, 1),       //
           on(K::kReceiveGradient, 0, 0),      //
           wait(K::kReceiveGradient, 0, 0),    // 5
           wait(K::kSendActivation, 0, 0),     //
           on(K::kBackward, 0, 0),             //
           on(K::kReceiveGradient, 0, 1),      //
           wait(K::kReceiveGradient, 0, 1),    //
           wait(K::kSendActivation, 0, 1),     // 10
           on(K::kBackwardInput, 0, 1),        //
           on(K::kBackwardWeight, 0, 1)},      //
          {on(K::kReceiveActivation, 1, 0),    // 0
           wait(K::kReceiveActivation, 1, 0),  //
           on(K::kForward, 1, 0),              //
           on(K::kReceiveActivation, 1, 1),    //
           wait(K::kReceiveActivation, 1, 1),  //
           on(K::kForward, 1, 1),              // 5
           on(K::kBackward, 1, 0),             //
           on(K::kSendGradient, 1, 0),         //
           on(K::kBackward, 1, 1),             //
           on(K::kSendGradient, 1, 1),         //
           wait(K::kSendGradient, 1, 0),       // 10
           wait(K::kSendGradient, 1, 1)}};
}

const PipelineShape kTwoStages{.rank_of_stage = {0, 1}, .num_microbatches = 2};

std::string error_of(const std::vector<Program>& programs,
                     const PipelineShape& shape = kTwoStages,
                     ProgramKind kind = ProgramKind::kTraining) {
  try {
    verify_pipeline(programs, shape, kind);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

std::string error_after(const std::function<void(std::vector<Program>&)>& change) {
  std::vector<Program> programs = two_ranks();
  change(programs);
  const std::string error = error_of(programs);
  const std::string start = "pipeline programs, ";
  return error.starts_with(start) ? error.substr(start.size()) : error;
}

std::string error_with(size_t rank, size_t index, const Action& action) {
  return error_after([&](auto& programs) { programs[rank][index] = action; });
}

std::string error_without(size_t rank, size_t index) {
  return error_after([&](auto& programs) {
    programs[rank].erase(programs[rank].begin() + static_cast<int64_t>(index));
  });
}

std::string error_of_swap(size_t rank, size_t a, size_t b) {
  return error_after(
      [&](auto& programs) { std::swap(programs[rank][a], programs[rank][b]); });
}

TEST(VerifyPipeline, AcceptsProgramsThatWorkTogether) {
  EXPECT_EQ(error_of(two_ranks()), "");
  EXPECT_EQ(error_of_swap(0, 5, 6), "");    // two Waits
  EXPECT_EQ(error_of_swap(1, 10, 11), "");  // two Waits
}

TEST(VerifyPipeline, RefusesActionsThatAPipelineDoesNotHave) {
  EXPECT_EQ(error_with(0, 0, {.kind = K::kUnshard, .group = 0}),
            "rank 0, action 0 (Unshard g0): is no action of a stage");
  EXPECT_EQ(error_with(0, 0, on(K::kRecompute, 0, 0)),
            "rank 0, action 0 (Recompute st0 mb0): is no action of a stage");
  EXPECT_EQ(error_with(0, 5, wait(K::kForward, 0, 0)),
            "rank 0, action 5 (Wait Forward st0 mb0): is no action of a stage");
  EXPECT_EQ(error_with(0, 0, on(K::kForward, 2, 0)),
            "rank 0, action 0 (Forward st2 mb0): expected a stage below 2, found 2");
  EXPECT_EQ(error_with(0, 0, on(K::kForward, 0, 2)),
            "rank 0, action 0 (Forward st0 mb2): expected a microbatch below 2, found "
            "2");
  EXPECT_EQ(error_with(0, 0, on(K::kForward, 1, 0)),
            "rank 0, action 0 (Forward st1 mb0): stage 1 is on rank 1");
  EXPECT_EQ(error_with(0, 1, on(K::kSendGradient, 0, 0)),
            "rank 0, action 1 (SendGradient st0 mb0): there is no stage -1");
  Action odd = on(K::kForward, 0, 0);
  odd.segment = 3;
  EXPECT_EQ(error_with(0, 0, odd),
            "rank 0, action 0 (Forward st0 s3 mb0): names a segment or a group");
}

TEST(VerifyPipeline, EachWorkRunsOnceAndInOrder) {
  EXPECT_EQ(error_with(0, 2, on(K::kForward, 0, 0)),
            "rank 0, action 2 (Forward st0 mb0): has run already");
  EXPECT_EQ(error_with(0, 0, on(K::kBackward, 0, 0)),
            "rank 0, action 0 (Backward st0 mb0): comes before its Forward");
  EXPECT_EQ(error_with(1, 8, on(K::kBackward, 1, 0)),
            "rank 1, action 8 (Backward st1 mb0): has run already");
  EXPECT_EQ(error_of_swap(0, 11, 12),
            "rank 0, action 11 (BackwardWeight st0 mb1): comes before its "
            "BackwardInput");
  EXPECT_EQ(error_with(0, 12, on(K::kBackwardWeight, 0, 0)),
            "rank 0, action 12 (BackwardWeight st0 mb0): has run already");
  EXPECT_EQ(error_without(0, 12),
            "rank 0, action 12 (the end): BackwardWeight st0 mb1 is missing");
  EXPECT_EQ(error_without(1, 8),
            "rank 1, action 8 (SendGradient st1 mb1): comes before its backward");
}

TEST(VerifyPipeline, WorkFindsItsMessages) {
  EXPECT_EQ(error_of_swap(1, 1, 2),
            "rank 1, action 1 (Forward st1 mb0): needs ReceiveActivation st1 mb0, "
            "which has not been waited for");
  EXPECT_EQ(error_without(0, 9),
            "rank 0, action 10 (BackwardInput st0 mb1): needs ReceiveGradient st0 mb1, "
            "which has not been waited for");
  EXPECT_EQ(error_of_swap(0, 0, 1),
            "rank 0, action 0 (SendActivation st0 mb0): comes before its Forward");
  EXPECT_EQ(error_of_swap(1, 8, 9),
            "rank 1, action 8 (SendGradient st1 mb1): comes before its backward");
}

TEST(VerifyPipeline, StagesOfOneRankHandOverWithoutMessages) {
  const PipelineShape shape{.rank_of_stage = {0, 0}, .num_microbatches = 1};
  const std::vector<Program> programs{{on(K::kForward, 0, 0), on(K::kForward, 1, 0),
                                       on(K::kBackward, 1, 0), on(K::kBackward, 0, 0)}};
  EXPECT_EQ(error_of(programs, shape), "");
  auto changed = programs;
  std::swap(changed[0][2], changed[0][3]);
  EXPECT_EQ(error_of(changed, shape),
            "pipeline programs, rank 0, action 2 (Backward st0 mb0): needs stage 1, "
            "which has not run");
  changed = programs;
  changed[0].insert(changed[0].begin() + 1, on(K::kSendActivation, 0, 0));
  EXPECT_EQ(error_of(changed, shape),
            "pipeline programs, rank 0, action 1 (SendActivation st0 mb0): stage 1 is "
            "on the same rank");
}

TEST(VerifyPipeline, EveryStartHasOneWait) {
  EXPECT_EQ(error_without(1, 11),
            "rank 1, action 11 (the end): nobody waits for SendGradient st1 mb1");
  EXPECT_EQ(error_with(1, 11, wait(K::kSendGradient, 1, 0)),
            "rank 1, action 11 (Wait SendGradient st1 mb0): nothing was started that "
            "this waits for");
  EXPECT_EQ(error_with(1, 9, on(K::kSendGradient, 1, 0)),
            "rank 1, action 9 (SendGradient st1 mb0): has been started already");
}

TEST(VerifyPipeline, BothEndsOfAChannelHaveTheSameOrder) {
  EXPECT_EQ(error_after([](auto& programs) {
              std::swap(programs[0][0], programs[0][2]);
              std::swap(programs[0][1], programs[0][3]);
            }),
            "rank 1, action 0 (ReceiveActivation st1 mb0): meets SendActivation st0 "
            "mb1 of rank 0, by their order");
  EXPECT_EQ(error_after([](auto& programs) {
              programs[1].erase(programs[1].begin() + 11);
              programs[1].erase(programs[1].begin() + 9);
            }),
            "rank 0, action 8 (ReceiveGradient st0 mb1): rank 1 never sends it");
  EXPECT_EQ(error_of({{on(K::kForward, 0, 0), on(K::kSendActivation, 0, 0),
                       wait(K::kSendActivation, 0, 0)},
                      {}},
                     {.rank_of_stage = {0, 1}, .num_microbatches = 1},
                     ProgramKind::kForwardOnly),
            "pipeline programs, rank 1, action 0 (the end): Forward st1 mb0 is "
            "missing");
}

TEST(VerifyPipeline, FindsRanksThatWaitForEachOther) {
  // Rank 0 waits for the receive of microbatch 1, which rank 1 starts after the one of
  // microbatch 0 has come; only then both go on. Waiting before the send cannot end.
  EXPECT_EQ(error_after([](auto& programs) {
              Program& p = programs[0];
              const Action gradient = p[4], its_wait = p[5];
              p.erase(p.begin() + 4, p.begin() + 6);
              p.insert(p.begin() + 2, {gradient, its_wait});
            }),
            "rank 0, action 3 (Wait ReceiveGradient st0 mb0): waits for ever for "
            "SendGradient st1 mb0 of rank 1, which itself waits for this rank");
  EXPECT_EQ(error_after([](auto& programs) {
              Program& p = programs[1];  // the gradient's receive is not there yet
              std::rotate(p.begin() + 8, p.begin() + 10, p.begin() + 11);
              Program& q = programs[0];  // and comes only after the next gradient's
              std::swap(q[4], q[8]);
              std::swap(q[5], q[9]);
            }),
            "rank 0, action 7 (Backward st0 mb0): needs ReceiveGradient st0 mb0, which "
            "has not been waited for");
}

TEST(VerifyPipeline, AWaitOfASendNeedsItsReceive) {
  // Each rank's first Wait is for a send that the other receives only after its own.
  const PipelineShape shape{.rank_of_stage = {0, 1, 0}, .num_microbatches = 2};
  const std::vector<Program> programs{
      {on(K::kForward, 0, 0), on(K::kSendActivation, 0, 0), on(K::kForward, 0, 1),
       on(K::kSendActivation, 0, 1), wait(K::kSendActivation, 0, 0),
       wait(K::kSendActivation, 0, 1), on(K::kReceiveActivation, 2, 0),
       wait(K::kReceiveActivation, 2, 0), on(K::kForward, 2, 0),
       on(K::kReceiveActivation, 2, 1), wait(K::kReceiveActivation, 2, 1),
       on(K::kForward, 2, 1)},
      {on(K::kReceiveActivation, 1, 0), wait(K::kReceiveActivation, 1, 0),
       on(K::kForward, 1, 0), on(K::kSendActivation, 1, 0),
       wait(K::kSendActivation, 1, 0), on(K::kReceiveActivation, 1, 1),
       wait(K::kReceiveActivation, 1, 1), on(K::kForward, 1, 1),
       on(K::kSendActivation, 1, 1), wait(K::kSendActivation, 1, 1)}};
  EXPECT_EQ(error_of(programs, shape, ProgramKind::kForwardOnly),
            "pipeline programs, rank 0, action 5 (Wait SendActivation st0 mb1): waits "
            "for ever for ReceiveActivation st1 mb1 of rank 1, which itself waits for "
            "this rank");
}

TEST(VerifyPipeline, PairsAreAForwardAndABackwardOfAnotherMicrobatch) {
  const PipelineShape shape{.rank_of_stage = {0}, .num_microbatches = 2};
  Program program{on(K::kForward, 0, 0), on(K::kForward, 0, 1), on(K::kBackward, 0, 0),
                  on(K::kBackward, 0, 1)};
  program[1].overlaps_next = true;
  EXPECT_EQ(error_of({program}, shape), "");
  std::swap(program[2], program[3]);
  EXPECT_EQ(error_of({program}, shape),
            "pipeline programs, rank 0, action 1 (Forward st0 mb1 with the next): only "
            "a Forward and the backward of another microbatch right after it can run "
            "together");
}

TEST(VerifyPipeline, LiveActivationsStayWithinTheirBound) {
  PipelineShape shape = kTwoStages;
  shape.live_bounds = {2, 2};
  EXPECT_EQ(error_of(two_ranks(), shape), "");
  shape.live_bounds = {2, 1};
  EXPECT_EQ(error_of(two_ranks(), shape),
            "pipeline programs, rank 1, action 5 (Forward st1 mb1): has 2 live "
            "activations, and the schedule promises at most 1");
}

TEST(VerifyPipeline, WithoutBackwardThereAreOnlyForwards) {
  EXPECT_EQ(error_of(two_ranks(), kTwoStages, ProgramKind::kForwardOnly),
            "pipeline programs, rank 0, action 4 (ReceiveGradient st0 mb0): has no "
            "place in a program without backward");
}

TEST(VerifyPipeline, RefusesAShapeThatDoesNotFitThePrograms) {
  EXPECT_EQ(error_of({{}}, {.rank_of_stage = {0, 1}, .num_microbatches = 1}),
            "verify_pipeline: stage 1 is on rank 1, and there are programs of 1");
  EXPECT_EQ(error_of({{}}, {.rank_of_stage = {0}, .num_microbatches = 0}),
            "verify_pipeline: needs at least 1 microbatch, got 0");
  EXPECT_EQ(error_of({{}}, {.rank_of_stage = {}, .num_microbatches = 1}),
            "verify_pipeline: there is no stage");
  EXPECT_EQ(
      error_of({{}},
               {.rank_of_stage = {0}, .num_microbatches = 1, .live_bounds = {1, 1}}),
      "verify_pipeline: got bounds for 2 ranks and programs of 1");
}

}  // namespace
}  // namespace torchtitan::plan
