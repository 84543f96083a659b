#include "plan/passes/offload.h"

#include <gtest/gtest.h>

#include "plan/passes/expand_stages.h"
#include "plan/passes/recompute.h"
#include "plan/passes/step_program.h"
#include "plan/schedules/sequential.h"
#include "plan/shapes.h"
#include "plan/verify.h"

namespace torchtitan::plan::passes {
namespace {

// Segments that are all to be offloaded.
StepShape offloaded_chain(int64_t num_segments, int64_t num_microbatches = 1) {
  StepShape shape = chain(num_segments, 1, 1, num_microbatches);
  for (SegmentShape& segment : shape.segments) {
    segment.offload = true;
    segment.offload_bytes = 48;
  }
  return shape;
}

std::string refusal(int64_t depth) {
  try {
    const StepShape shape = offloaded_chain(3);
    offload(schedules::sequential(shape), shape, depth);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Offload, CopiesRightAfterAForwardAndBackJustBeforeItsUse) {
  const StepShape shape = offloaded_chain(3);
  EXPECT_EQ(one_line(offload(schedules::sequential(shape), shape, 0)),
            "Forward s0 mb0; Offload s0 mb0; Wait Offload s0 mb0; "
            "Forward s1 mb0; Offload s1 mb0; Wait Offload s1 mb0; "
            "Forward s2 mb0; Backward s2 mb0; "
            "Reload s1 mb0; Wait Reload s1 mb0; Backward s1 mb0; "
            "Reload s0 mb0; Wait Reload s0 mb0; Backward s0 mb0");
}

TEST(Offload, LetsComputeRunDuringTheCopies) {
  const StepShape shape = offloaded_chain(4);
  EXPECT_EQ(one_line(offload(schedules::sequential(shape), shape, 1)),
            "Forward s0 mb0; Offload s0 mb0; "
            "Forward s1 mb0; Offload s1 mb0; Wait Offload s0 mb0; "
            "Forward s2 mb0; Wait Offload s1 mb0; Forward s3 mb0; Backward s3 mb0; "
            "Reload s1 mb0; Backward s2 mb0; Reload s0 mb0; Wait Reload s1 mb0; "
            "Backward s1 mb0; Wait Reload s0 mb0; Backward s0 mb0");
}

// With depth 1 the two last segments are needed too soon, with depth 2 one more.
TEST(Offload, LeavesOnTheDeviceWhatIsNeededSoon) {
  const StepShape shape = offloaded_chain(5);
  for (const int64_t depth : {0, 1, 2}) {
    const Program program = offload(schedules::sequential(shape), shape, depth);
    for (int64_t segment = 0; segment < 5; ++segment) {
      const Action away{
          .kind = ActionKind::kOffload, .segment = segment, .microbatch = 0};
      const bool found =
          std::find(program.begin(), program.end(), away) != program.end();
      EXPECT_EQ(found, segment < 4 - depth)
          << "segment " << segment << ", depth " << depth;
    }
  }
}

TEST(Offload, LeavesSegmentsThatAreNotToBeOffloaded) {
  StepShape shape = offloaded_chain(4);
  for (SegmentShape& segment : shape.segments) segment.offload = false;
  const Program program = schedules::sequential(shape);
  EXPECT_EQ(offload(program, shape, 1), program);
  EXPECT_EQ(
      offload(schedules::sequential_forward(offloaded_chain(4)), offloaded_chain(4), 1),
      schedules::sequential_forward(shape));
}

TEST(Offload, BringsBackBeforeARecompute) {
  StepShape shape = offloaded_chain(4);
  for (SegmentShape& segment : shape.segments) segment.recompute = true;
  const Program program =
      offload(recompute(schedules::sequential(shape), shape), shape, 1);
  const std::string text = one_line(program);
  EXPECT_NE(text.find("Recompute s2 mb0; Reload s1 mb0; Backward s2 mb0; "
                      "Wait Reload s1 mb0; Recompute s1 mb0; Reload s0 mb0; "
                      "Backward s1 mb0; Wait Reload s0 mb0; Recompute s0 mb0; "
                      "Backward s0 mb0"),
            std::string::npos)
      << text;
}

TEST(Offload, BringsBackBeforeTheFirstHalfOfABackward) {
  StepShape shape = offloaded_chain(3);
  Program program;
  for (int64_t s = 0; s < 3; ++s) {
    program.push_back({.kind = ActionKind::kForward, .segment = s, .microbatch = 0});
  }
  for (const auto kind : {ActionKind::kBackwardInput, ActionKind::kBackwardWeight}) {
    for (int64_t s = 3; s-- > 0;) {
      program.push_back({.kind = kind, .segment = s, .microbatch = 0});
    }
  }
  EXPECT_EQ(one_line(offload(program, shape, 1)),
            "Forward s0 mb0; Offload s0 mb0; Forward s1 mb0; Wait Offload s0 mb0; "
            "Forward s2 mb0; BackwardInput s2 mb0; Reload s0 mb0; "
            "BackwardInput s1 mb0; Wait Reload s0 mb0; BackwardInput s0 mb0; "
            "BackwardWeight s2 mb0; BackwardWeight s1 mb0; BackwardWeight s0 mb0");
}

TEST(Offload, KeepsMicrobatchesApart) {
  const StepShape shape = offloaded_chain(3, 2);
  const Program program =
      build_step_program(shape, {.prefetch_depth = 1,
                                 .reduce_depth = 1,
                                 .offload_depth = 1,
                                 .optimizer = OptimizerTiming::kAtEnd});
  for (const int64_t microbatch : {0, 1}) {
    const Action away{
        .kind = ActionKind::kOffload, .segment = 0, .microbatch = microbatch};
    EXPECT_EQ(std::count(program.begin(), program.end(), away), 1);
  }
  verify(program, shape, ProgramKind::kTraining);
}

TEST(Offload, RefusesANegativeDepth) {
  EXPECT_EQ(refusal(-1), "offload: the depth must be at least 0, got -1");
  EXPECT_EQ(refusal(0), "accepted");
}

}  // namespace
}  // namespace torchtitan::plan::passes
