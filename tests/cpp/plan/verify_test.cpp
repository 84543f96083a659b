#include "plan/verify.h"

#include <gtest/gtest.h>

#include <optional>

#include "plan/shapes.h"

namespace torchtitan::plan {
namespace {

using K = ActionKind;

Action on_group(K kind, int64_t group) { return {.kind = kind, .group = group}; }
Action on_segment(K kind, int64_t segment, int64_t microbatch = 0) {
  return {.kind = kind, .segment = segment, .microbatch = microbatch};
}

// One segment, one group of two shards and two replicas, one microbatch.
const StepShape kShape = chain(1, 2, 2, 1);

Program valid_program() {
  return {{.kind = K::kCountTokens},
          wait_for({.kind = K::kCountTokens}),
          on_group(K::kUnshard, 0),
          wait_for(on_group(K::kUnshard, 0)),
          on_segment(K::kForward, 0),
          on_segment(K::kBackward, 0),
          on_group(K::kReshard, 0),
          on_group(K::kReduceGradient, 0),
          wait_for(on_group(K::kReduceGradient, 0)),
          on_group(K::kAllReduceGradient, 0),
          wait_for(on_group(K::kAllReduceGradient, 0)),
          {.kind = K::kClipGradient},
          {.kind = K::kOptimizerStep}};
}

std::string refusal(const Program& program, const StepShape& shape = kShape,
                    ProgramKind kind = ProgramKind::kTraining) {
  try {
    verify(program, shape, kind);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

std::string without(size_t index) {
  Program program = valid_program();
  program.erase(program.begin() + index);
  return refusal(program);
}

TEST(Verify, AcceptsAValidStep) { EXPECT_EQ(refusal(valid_program()), "accepted"); }

TEST(Verify, NamesTheActionThatUsesParametersThatAreNotGathered) {
  Program program = valid_program();
  std::swap(program[3], program[4]);
  EXPECT_EQ(refusal(program),
            "program action 3 (Forward s0 mb0): group 'group0' is not gathered");
  program = valid_program();
  std::swap(program[5], program[6]);
  EXPECT_EQ(refusal(program),
            "program action 6 (Backward s0 mb0): group 'group0' is not gathered");
}

TEST(Verify, NamesWhatIsMissing) {
  EXPECT_EQ(
      without(2),
      "program action 2 (Wait Unshard g0): nothing was started that this waits for");
  EXPECT_EQ(
      without(1),
      "program action 4 (Backward s0 mb0): the token count has not been waited for");
  EXPECT_EQ(without(4),
            "program action 4 (Backward s0 mb0): what Forward saves for it is missing");
  EXPECT_EQ(without(6), "program end, after 12 actions: group 'group0' stays gathered");
  EXPECT_EQ(without(8),
            "program action 8 (AllReduceGradient g0): the gradient of the step is not "
            "complete");
  EXPECT_EQ(without(10),
            "program action 10 (ClipGradient): the gradient of group 'group0' is not "
            "summed over replicas");
  EXPECT_EQ(without(11),
            "program action 11 (OptimizerStep): comes before ClipGradient");
  EXPECT_EQ(without(12),
            "program end, after 12 actions: group 'group0' is never updated");
}

TEST(Verify, RefusesAGradientThatIsReducedWithAContributionMissing) {
  StepShape tied = chain(2, 2, 1, 1);
  tied.groups.pop_back();
  tied.segments[1].groups = {0};
  const Program program{
      {.kind = K::kCountTokens},   wait_for({.kind = K::kCountTokens}),
      on_group(K::kUnshard, 0),    wait_for(on_group(K::kUnshard, 0)),
      on_segment(K::kForward, 0),  on_segment(K::kForward, 1),
      on_segment(K::kBackward, 1), on_group(K::kReduceGradient, 0)};
  EXPECT_EQ(
      refusal(program, tied),
      "program action 7 (ReduceGradient g0): the gradient of microbatch 0 has 1 of "
      "2 contributions");
}

TEST(Verify, RefusesActionsThatNameWhatTheShapeLacks) {
  EXPECT_EQ(refusal({on_segment(K::kForward, 1)}),
            "program action 0 (Forward s1 mb0): expected a segment below 1, found 1");
  EXPECT_EQ(refusal({on_segment(K::kForward, 0, -1)}),
            "program action 0 (Forward s0): expected a microbatch below 1, found -1");
  EXPECT_EQ(refusal({on_group(K::kUnshard, 7)}),
            "program action 0 (Unshard g7): expected a group below 1, found 7");
  EXPECT_EQ(refusal({on_group(K::kClipGradient, 0)}),
            "program action 0 (ClipGradient g0): expected no group, found 0");
  EXPECT_EQ(refusal({{.kind = K::kWait, .waits_for = K::kReshard}}),
            "program action 0 (Wait Reshard): this kind of action has no Wait");
  EXPECT_NE(
      refusal({{.kind = K::kForward, .waits_for = K::kUnshard}}).find("waits_for"),
      std::string::npos);
}

TEST(Verify, AForwardProgramHasNoBackwardAndLeavesNothing) {
  Program program{on_group(K::kUnshard, 0), wait_for(on_group(K::kUnshard, 0)),
                  on_segment(K::kForward, 0), on_group(K::kReshard, 0)};
  EXPECT_EQ(refusal(program, kShape, ProgramKind::kForwardOnly), "accepted");
  EXPECT_NE(refusal(program).find("Backward s0 mb0 is missing"), std::string::npos);
  program.push_back(on_segment(K::kBackward, 0));
  EXPECT_EQ(refusal(program, kShape, ProgramKind::kForwardOnly),
            "program action 4 (Backward s0 mb0): has no place in a program without "
            "backward");
}

TEST(Verify, RefusesAShapeThatNoStepCanHave) {
  EXPECT_THROW(verify({}, chain(0, 1, 1, 1), ProgramKind::kTraining),
               std::invalid_argument);
}

TEST(Verify, RanksMustStartTheSameCommunicationsInOneOrder) {
  Program other = valid_program();
  std::swap(other[0], other[2]);
  const std::vector<Program> different{valid_program(), valid_program(), other};
  try {
    verify_agreement(different);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(
        error.what(),
        "communication 0 differs between ranks: rank 0 reaches CountTokens, rank "
        "2 reaches Unshard g0");
  }
  Program shorter = valid_program();
  shorter.pop_back();
  shorter.pop_back();
  EXPECT_THROW(verify_agreement(std::vector<Program>{valid_program(), shorter}),
               std::invalid_argument);
  // When a Wait comes is each rank's own affair.
  Program waits_later = valid_program();
  std::swap(waits_later[1], waits_later[2]);
  EXPECT_NO_THROW(verify_agreement(std::vector<Program>{valid_program(), waits_later}));
  EXPECT_NO_THROW(verify_agreement({}));
}

TEST(VerifyAgreement, CopiesToHostMemoryAreEachRanksOwnAffair) {
  Program copies = valid_program();
  const Action leave = on_segment(K::kOffload, 0);
  copies.insert(copies.begin() + 5, {leave, wait_for(leave)});
  EXPECT_NO_THROW(verify_agreement(std::vector<Program>{valid_program(), copies}));
}

// Three segments, of which the first is offloaded.
StepShape offloaded_shape() {
  StepShape shape = chain(3, 1, 1, 1);
  shape.segments[0].offload = true;
  return shape;
}

Program offloaded_program() {
  const Action leave = on_segment(K::kOffload, 0), come = on_segment(K::kReload, 0);
  return {{.kind = K::kCountTokens},
          wait_for({.kind = K::kCountTokens}),
          on_segment(K::kForward, 0),
          leave,
          on_segment(K::kForward, 1),
          wait_for(leave),
          on_segment(K::kForward, 2),
          on_segment(K::kBackward, 2),
          come,
          on_segment(K::kBackward, 1),
          wait_for(come),
          on_segment(K::kBackward, 0),
          {.kind = K::kClipGradient},
          {.kind = K::kOptimizerStep}};
}

// With an action moved to another place, or gone.
std::string moved(size_t from, std::optional<size_t> to) {
  Program program = offloaded_program();
  const Action action = program[from];
  program.erase(program.begin() + from);
  if (to) program.insert(program.begin() + *to, action);
  return refusal(program, offloaded_shape());
}

TEST(Verify, AcceptsWhatWaitsInHostMemory) {
  EXPECT_EQ(refusal(offloaded_program(), offloaded_shape()), "accepted");
}

TEST(Verify, NamesWrongOrdersOfCopiesToAndFromHostMemory) {
  EXPECT_EQ(moved(3, 2), "program action 2 (Offload s0 mb0): comes before its Forward");
  EXPECT_EQ(
      moved(3, std::nullopt),
      "program action 4 (Wait Offload s0 mb0): nothing was started that this waits "
      "for");
  EXPECT_EQ(moved(5, std::nullopt),
            "program action 7 (Reload s0 mb0): its Offload has not been waited for");
  EXPECT_EQ(moved(10, std::nullopt),
            "program action 10 (Backward s0 mb0): what Forward keeps for it is not yet "
            "back");
  EXPECT_EQ(moved(10, 11),
            "program action 10 (Backward s0 mb0): what Forward keeps for it is not yet "
            "back");
  EXPECT_EQ(moved(8, 2), "program action 2 (Reload s0 mb0): was never offloaded");
  EXPECT_EQ(moved(11, 7),
            "program action 7 (Backward s0 mb0): what Forward keeps for it "
            "is in host memory");
  Program program = offloaded_program();
  program.erase(program.begin() + 8);
  program.erase(program.begin() + 9);
  EXPECT_EQ(refusal(program, offloaded_shape()),
            "program action 9 (Backward s0 mb0): what Forward keeps for it is in host "
            "memory");
  program = offloaded_program();
  program.insert(program.begin() + 6, on_segment(K::kOffload, 0));
  EXPECT_EQ(refusal(program, offloaded_shape()),
            "program action 6 (Offload s0 mb0): was offloaded already");
  program = offloaded_program();
  program.insert(program.begin() + 11, on_segment(K::kReload, 0));
  EXPECT_EQ(refusal(program, offloaded_shape()),
            "program action 11 (Reload s0 mb0): was brought back already");
  program = offloaded_program();
  program.insert(program.begin() + 12, on_segment(K::kOffload, 0));
  EXPECT_EQ(refusal(program, offloaded_shape()),
            "program action 12 (Offload s0 mb0): was offloaded already");
}

TEST(Verify, OffloadsOnlyWhatIsToBeAndIsKept) {
  StepShape shape = offloaded_shape();
  shape.segments[0].offload = false;
  EXPECT_EQ(refusal(offloaded_program(), shape),
            "program action 3 (Offload s0 mb0): segment 'segment0' is not to be "
            "offloaded");
  Program program = offloaded_program();
  for (const size_t index : {3, 4, 6, 7}) program.erase(program.begin() + index);
  program.insert(program.begin() + 8, on_segment(K::kOffload, 0));
  EXPECT_EQ(refusal(program, offloaded_shape()),
            "program action 8 (Offload s0 mb0): what Forward keeps was used");
  EXPECT_EQ(refusal({on_segment(K::kForward, 0), on_segment(K::kOffload, 0)},
                    offloaded_shape(), ProgramKind::kForwardOnly),
            "program action 1 (Offload s0 mb0): has no place in a program without "
            "backward");
}

}  // namespace
}  // namespace torchtitan::plan
