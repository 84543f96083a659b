#include "plan/passes/prefetch.h"

#include <gtest/gtest.h>

#include "plan/passes/shard.h"
#include "plan/schedules/sequential.h"
#include "plan/shapes.h"

namespace torchtitan::plan::passes {
namespace {

Program sharded(const StepShape& shape) {
  return shard(schedules::sequential(shape), shape);
}

TEST(Prefetch, StartsEachGatherBeforeTheSegmentThatRunsFirst) {
  EXPECT_EQ(one_line(prefetch(sharded(chain(3, 2, 1, 1)), 1)),
            "Unshard g0; Wait Unshard g0; Unshard g1; Forward s0 mb0; Reshard g0; "
            "Wait Unshard g1; Unshard g2; Forward s1 mb0; Reshard g1; "
            "Wait Unshard g2; Forward s2 mb0; Unshard g1; Backward s2 mb0; Reshard g2; "
            "ReduceGradient g2; Wait ReduceGradient g2; "
            "Wait Unshard g1; Unshard g0; Backward s1 mb0; Reshard g1; "
            "ReduceGradient g1; Wait ReduceGradient g1; "
            "Wait Unshard g0; Backward s0 mb0; Reshard g0; "
            "ReduceGradient g0; Wait ReduceGradient g0");
}

TEST(Prefetch, DepthIsTheNumberOfSegmentsAhead) {
  EXPECT_EQ(one_line(prefetch(shard(schedules::sequential_forward(chain(4, 2, 1, 1)),
                                    chain(4, 2, 1, 1)),
                              2)),
            "Unshard g0; Wait Unshard g0; Unshard g1; Unshard g2; Forward s0 mb0; "
            "Reshard g0; Wait Unshard g1; Unshard g3; Forward s1 mb0; Reshard g1; "
            "Wait Unshard g2; Forward s2 mb0; Reshard g2; Wait Unshard g3; "
            "Forward s3 mb0; Reshard g3");
  const Program program = sharded(chain(3, 2, 1, 2));
  EXPECT_EQ(prefetch(program, 0), program);
}

TEST(Prefetch, AGatherThatMeetsItsReshardLeavesTheGroupGathered) {
  StepShape shape = chain(3, 2, 1, 1);
  shape.segments[2].groups = {0};
  shape.groups.pop_back();
  const Program program =
      prefetch(shard(schedules::sequential_forward(shape), shape), 1);
  EXPECT_EQ(one_line(program),
            "Unshard g0; Wait Unshard g0; Unshard g1; Forward s0 mb0; Wait Unshard g1; "
            "Forward s1 mb0; Reshard g1; Forward s2 mb0; Reshard g0");
}

TEST(Prefetch, ARankGathersWhileItWaitsForItsInput) {
  const Action receive{
      .kind = ActionKind::kReceiveActivation, .stage = 1, .microbatch = 0};
  const Program forwards{receive,
                         wait_for(receive),
                         {.kind = ActionKind::kForward, .segment = 0, .microbatch = 0},
                         {.kind = ActionKind::kForward, .segment = 1, .microbatch = 0}};
  EXPECT_EQ(one_line(prefetch(shard(forwards, chain(2, 2, 1, 1)), 1)),
            "Unshard g0; ReceiveActivation st1 mb0; Wait ReceiveActivation st1 mb0; "
            "Wait Unshard g0; Unshard g1; Forward s0 mb0; Reshard g0; "
            "Wait Unshard g1; Forward s1 mb0; Reshard g1");
}

TEST(DelayReductions, LetOneBackwardRunDuringAReduction) {
  const StepShape shape = chain(2, 2, 1, 2, Reshard::kNever);
  EXPECT_EQ(one_line(delay_reductions(sharded(shape), shape, 1)),
            "Unshard g0; Wait Unshard g0; Forward s0 mb0; "
            "Unshard g1; Wait Unshard g1; Forward s1 mb0; "
            "Backward s1 mb0; Reshard g1; ReduceGradient g1; "
            "Backward s0 mb0; Wait ReduceGradient g1; ReduceGradient g0; "
            "Forward s0 mb1; Wait ReduceGradient g0; "
            "Unshard g1; Wait Unshard g1; Forward s1 mb1; "
            "Backward s1 mb1; Reshard g1; ReduceGradient g1; "
            "Backward s0 mb1; Wait ReduceGradient g1; Reshard g0; ReduceGradient g0; "
            "Wait ReduceGradient g0");
}

TEST(DelayReductions, TheSumOverReplicasFollowsTheSumOverShards) {
  const StepShape shape = chain(3, 1, 1, 1);
  StepShape hybrid = shape;
  for (GroupShape& group : hybrid.groups) group.replicas = 2;
  hybrid.groups[2].shards = 2;
  EXPECT_EQ(
      one_line(delay_reductions(sharded(hybrid), hybrid, 1)),
      "Forward s0 mb0; Forward s1 mb0; Unshard g2; Wait Unshard g2; "
      "Forward s2 mb0; Backward s2 mb0; Reshard g2; ReduceGradient g2; "
      "Backward s1 mb0; Wait ReduceGradient g2; AllReduceGradient g2; "
      "AllReduceGradient g1; Backward s0 mb0; Wait AllReduceGradient g2; "
      "Wait AllReduceGradient g1; AllReduceGradient g0; Wait AllReduceGradient g0");
}

TEST(DelayReductions, NoGradientIsWrittenWhileItsReductionIsUnderWay) {
  const StepShape shape = chain(1, 2, 1, 2);
  EXPECT_EQ(one_line(delay_reductions(sharded(shape), shape, 9)),
            "Unshard g0; Wait Unshard g0; Forward s0 mb0; Backward s0 mb0; "
            "ReduceGradient g0; Forward s0 mb1; Wait ReduceGradient g0; "
            "Backward s0 mb1; Reshard g0; ReduceGradient g0; Wait ReduceGradient g0");
  EXPECT_EQ(delay_reductions(sharded(shape), shape, 0), sharded(shape));
}

TEST(Prefetch, RefusesNegativeDepths) {
  EXPECT_THROW(prefetch({}, -1), std::invalid_argument);
  EXPECT_THROW(delay_reductions({}, chain(1, 1, 1, 1), -1), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::plan::passes
