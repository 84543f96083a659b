#include "plan/passes/shard.h"

#include <gtest/gtest.h>

#include "plan/passes/recompute.h"
#include "plan/schedules/sequential.h"
#include "plan/shapes.h"

namespace torchtitan::plan::passes {
namespace {

std::string sharded(const StepShape& shape) {
  return one_line(shard(recompute(schedules::sequential(shape), shape), shape));
}

TEST(Shard, OneRankNeedsNoCommunication) {
  const StepShape shape = chain(2, 1, 1, 2);
  EXPECT_EQ(sharded(shape), one_line(schedules::sequential(shape)));
}

TEST(Shard, DefaultFreesAfterEachUseButWhereTheNextSegmentNeedsTheGroup) {
  EXPECT_EQ(sharded(chain(2, 4, 1, 1)),
            "Unshard g0; Wait Unshard g0; Forward s0 mb0; Reshard g0; "
            "Unshard g1; Wait Unshard g1; Forward s1 mb0; Backward s1 mb0; Reshard g1; "
            "ReduceGradient g1; Wait ReduceGradient g1; "
            "Unshard g0; Wait Unshard g0; Backward s0 mb0; Reshard g0; "
            "ReduceGradient g0; Wait ReduceGradient g0");
}

TEST(Shard, AlwaysFreesTheLastGroupBetweenForwardAndBackwardToo) {
  EXPECT_EQ(sharded(chain(1, 4, 1, 1, Reshard::kAlways)),
            "Unshard g0; Wait Unshard g0; Forward s0 mb0; Reshard g0; "
            "Unshard g0; Wait Unshard g0; Backward s0 mb0; Reshard g0; "
            "ReduceGradient g0; Wait ReduceGradient g0");
}

TEST(Shard, NeverKeepsGroupsFromForwardToBackwardOfAMicrobatch) {
  EXPECT_EQ(sharded(chain(2, 4, 1, 2, Reshard::kNever)),
            "Unshard g0; Wait Unshard g0; Forward s0 mb0; "
            "Unshard g1; Wait Unshard g1; Forward s1 mb0; "
            "Backward s1 mb0; Reshard g1; ReduceGradient g1; Wait ReduceGradient g1; "
            "Backward s0 mb0; ReduceGradient g0; Wait ReduceGradient g0; "
            "Forward s0 mb1; "
            "Unshard g1; Wait Unshard g1; Forward s1 mb1; "
            "Backward s1 mb1; Reshard g1; ReduceGradient g1; Wait ReduceGradient g1; "
            "Backward s0 mb1; Reshard g0; ReduceGradient g0; Wait ReduceGradient g0");
}

TEST(Shard, ReplicatedGroupsSumTheirGradientOnceInAStep) {
  EXPECT_EQ(sharded(chain(1, 1, 2, 2)),
            "Forward s0 mb0; Backward s0 mb0; Forward s0 mb1; Backward s0 mb1; "
            "AllReduceGradient g0; Wait AllReduceGradient g0");
}

TEST(Shard, HybridSumsOverShardsEachMicrobatchAndOverReplicasOnce) {
  EXPECT_EQ(sharded(chain(1, 2, 2, 2)),
            "Unshard g0; Wait Unshard g0; Forward s0 mb0; Backward s0 mb0; "
            "ReduceGradient g0; Wait ReduceGradient g0; "
            "Forward s0 mb1; Backward s0 mb1; Reshard g0; "
            "ReduceGradient g0; Wait ReduceGradient g0; "
            "AllReduceGradient g0; Wait AllReduceGradient g0");
}

TEST(Shard, AGroupOfSeveralSegmentsIsReducedAfterItsLastGradient) {
  StepShape shape = chain(3, 2, 1, 1);
  shape.segments[2].groups = {2, 0};  // the head uses the embedding
  EXPECT_EQ(sharded(shape),
            "Unshard g0; Wait Unshard g0; Forward s0 mb0; Reshard g0; "
            "Unshard g1; Wait Unshard g1; Forward s1 mb0; Reshard g1; "
            "Unshard g2; Wait Unshard g2; Unshard g0; Wait Unshard g0; "
            "Forward s2 mb0; Backward s2 mb0; Reshard g2; Reshard g0; "
            "ReduceGradient g2; Wait ReduceGradient g2; "
            "Unshard g1; Wait Unshard g1; Backward s1 mb0; Reshard g1; "
            "ReduceGradient g1; Wait ReduceGradient g1; "
            "Unshard g0; Wait Unshard g0; Backward s0 mb0; Reshard g0; "
            "ReduceGradient g0; Wait ReduceGradient g0");
}

TEST(Shard, ARecomputedSegmentIsGatheredOnceForRecomputeAndBackward) {
  StepShape shape = chain(1, 2, 1, 1, Reshard::kAlways);
  shape.segments[0].recompute = true;
  EXPECT_EQ(
      sharded(shape),
      "Unshard g0; Wait Unshard g0; Forward s0 mb0; Reshard g0; "
      "Unshard g0; Wait Unshard g0; Recompute s0 mb0; Backward s0 mb0; Reshard g0; "
      "ReduceGradient g0; Wait ReduceGradient g0");
}

TEST(Shard, ASecondHalfIsGatheredForWhereItReadsParameters) {
  StepShape shape = chain(1, 2, 1, 1, Reshard::kAlways);
  const Program halves = {
      {.kind = ActionKind::kForward, .segment = 0, .microbatch = 0},
      {.kind = ActionKind::kBackwardInput, .segment = 0, .microbatch = 0},
      {.kind = ActionKind::kBackwardWeight, .segment = 0, .microbatch = 0}};
  const std::string first =
      "Unshard g0; Wait Unshard g0; Forward s0 mb0; Reshard g0; "
      "Unshard g0; Wait Unshard g0; BackwardInput s0 mb0; Reshard g0; ";
  const std::string reduced = "ReduceGradient g0; Wait ReduceGradient g0";
  EXPECT_EQ(one_line(shard(halves, shape)),
            first + "BackwardWeight s0 mb0; " + reduced);
  shape.segments[0].weight_half_reads_parameters = true;
  EXPECT_EQ(one_line(shard(halves, shape)),
            first + "Unshard g0; Wait Unshard g0; BackwardWeight s0 mb0; Reshard g0; " +
                reduced);
}

TEST(Shard, FrozenGroupsAreGatheredButNeverReduced) {
  StepShape shape = chain(1, 2, 2, 1);
  shape.groups[0].trainable = false;
  EXPECT_EQ(sharded(shape),
            "Unshard g0; Wait Unshard g0; Forward s0 mb0; Backward s0 mb0; Reshard g0");
}

}  // namespace
}  // namespace torchtitan::plan::passes
