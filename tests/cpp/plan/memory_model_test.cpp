#include "plan/memory_model.h"

#include <gtest/gtest.h>

#include "plan/shapes.h"

namespace torchtitan::plan {
namespace {

using K = ActionKind;

Action on_group(K kind, int64_t group) { return {.kind = kind, .group = group}; }
Action on_segment(K kind, int64_t segment) {
  return {.kind = kind, .segment = segment, .microbatch = 0};
}

// The test shapes: a group has 8 elements a shard, 4 bytes stored, 2 gathered, 4
// reduced, 8 of optimizer; a segment takes 16 bytes, gives 16, saves them and 64, needs
// 4 and 6 more.

TEST(MemoryModel, BetweenStepsShardsGradientsAndStatesLive) {
  StepShape shape = chain(2, 4, 1, 1);
  shape.groups[1].trainable = false;
  shape.constant_bytes = 1000;
  const MemoryEstimate estimate = estimate_memory({}, shape);
  EXPECT_EQ(
      estimate.before,
      (MemoryUse{
          .constant = 1000, .parameters = 2 * 32, .gradients = 32, .optimizer = 64}));
  EXPECT_EQ(estimate.before.total(), 1160);
  EXPECT_EQ(estimate.peak, estimate.before);
  EXPECT_EQ(estimate.peak_action, -1);
}

TEST(MemoryModel, WholeGroupsOfAnotherDtypeKeepACopy) {
  EXPECT_EQ(estimate_memory({}, chain(1, 1, 1, 1)).before.parameters, 8 * 4 + 8 * 2);
  StepShape same = chain(1, 1, 1, 1);
  same.groups[0].compute_bytes = 4;
  EXPECT_EQ(estimate_memory({}, same).before.parameters, 8 * 4);
}

TEST(MemoryModel, AGatherHoldsShardPackedAndWholeForAMoment) {
  const StepShape shape = chain(1, 4, 1, 1);
  const Action gather = on_group(K::kUnshard, 0);
  const MemoryEstimate estimate =
      estimate_memory({gather, wait_for(gather), on_group(K::kReshard, 0)}, shape);
  const int64_t base = estimate.before.total() + 16;  // the inputs of the batch
  const int64_t shard = 8 * 2, packed = 4 * shard, whole = 4 * shard;
  EXPECT_EQ(estimate.totals,
            (std::vector<int64_t>{base + shard + packed, base + shard + packed + whole,
                                  base}));
  EXPECT_EQ(estimate.peak_action, 1);
}

TEST(MemoryModel, AReductionPacksTheWholeGradientAndFreesIt) {
  const StepShape shape = chain(1, 4, 1, 1);
  const Action reduce = on_group(K::kReduceGradient, 0);
  const MemoryEstimate estimate =
      estimate_memory({on_segment(K::kForward, 0), on_segment(K::kBackward, 0), reduce,
                       wait_for(reduce)},
                      shape);
  const int64_t base = estimate.before.total();
  const int64_t whole = 32 * 4, packed = 32 * 4, shard = 8 * 4;
  EXPECT_EQ(estimate.totals[0], base + 16 + 16 + 64 + 4);
  EXPECT_EQ(estimate.totals[1], base + 16 + 16 + 64 + 6 + whole);
  EXPECT_EQ(estimate.totals[2], base + whole + packed);
  EXPECT_EQ(estimate.totals[3], base + packed + shard);
}

TEST(MemoryModel, ActivationsPileUpForwardAndMeltBackward) {
  StepShape shape = chain(2, 1, 1, 1);
  for (GroupShape& group : shape.groups) group.compute_bytes = 4;
  const MemoryEstimate estimate =
      estimate_memory({on_segment(K::kForward, 0), on_segment(K::kForward, 1),
                       on_segment(K::kBackward, 1), on_segment(K::kBackward, 0)},
                      shape);
  const int64_t base = estimate.before.total() + 16;
  const int64_t kept = 16 + 64;  // output and saved of a segment
  EXPECT_EQ(estimate.totals,
            (std::vector<int64_t>{base + kept + 4, base + 2 * kept + 4,
                                  base + 2 * kept + 16 + 6, base + kept + 16 + 6}));
  EXPECT_EQ(estimate.peak.activations, 2 * kept + 16);
  EXPECT_EQ(estimate.peak.temporaries, 6);
  EXPECT_EQ(estimate.peak_action, 2);
  EXPECT_EQ(estimate.after, estimate.before);
}

TEST(MemoryModel, OutputsThatBackwardDoesNotNeedDieWithTheirLastReader) {
  StepShape shape = chain(2, 1, 1, 1);
  for (GroupShape& group : shape.groups) group.compute_bytes = 4;
  for (SegmentShape& segment : shape.segments) segment.saves_outputs = false;
  const Action forward0 = on_segment(K::kForward, 0);
  const Action forward1 = on_segment(K::kForward, 1);
  const Action backward0 = on_segment(K::kBackward, 0);
  const Action backward1 = on_segment(K::kBackward, 1);
  const MemoryEstimate estimate =
      estimate_memory({forward0, forward1, backward1, backward0}, shape);
  const int64_t base = estimate.before.total() + 16;
  EXPECT_EQ(estimate.totals,
            (std::vector<int64_t>{base + 16 + 64 + 4, base + 2 * (16 + 64) + 4,
                                  base + 16 + 2 * 64 + 16 + 6,  // not the last outputs
                                  base + 64 + 16 + 6}));
  EXPECT_EQ(estimate.after, estimate.before);

  shape.segments[0].recompute = true;
  const MemoryEstimate recomputed = estimate_memory(
      {forward0, forward1, backward1, on_segment(K::kRecompute, 0), backward0}, shape);
  EXPECT_EQ(recomputed.totals[3], base + 16 + 16 + 64 + 4);  // the outputs for a moment
  EXPECT_EQ(recomputed.totals[4], base + 16 + 64 + 6);
  EXPECT_EQ(recomputed.after, recomputed.before);
}

TEST(MemoryModel, ATransportHoldsItsOwnBufferUntilTheWait) {
  const Action gather = on_group(K::kUnshard, 0);
  const Action reduce = on_group(K::kReduceGradient, 0);
  const Program program = {gather,
                           wait_for(gather),
                           on_segment(K::kForward, 0),
                           on_segment(K::kBackward, 0),
                           on_group(K::kReshard, 0),
                           reduce,
                           wait_for(reduce)};
  const StepShape plain = chain(1, 4, 1, 1);
  const MemoryEstimate without = estimate_memory(program, plain);
  const MemoryEstimate with =
      estimate_memory(program, with_transport_buffers(chain(1, 4, 1, 1)));
  EXPECT_EQ(with.totals[0], without.totals[0] + 4 * 8 * 2);
  for (size_t i = 1; i < 5; ++i) EXPECT_EQ(with.totals[i], without.totals[i]) << i;
  const int64_t packed = 4 * 8 * 4, shard = 8 * 4;
  EXPECT_EQ(with.totals[5], with.before.total() + packed + shard + packed);
  EXPECT_EQ(with.totals[6], with.totals[5]);
  EXPECT_EQ(with.after, with.before);
}

TEST(MemoryModel, WhatARecomputedSegmentKeepsStaysMeanwhile) {
  StepShape shape = chain(2, 1, 1, 1);
  shape.segments[0].recompute = true;
  const Program program = {on_segment(K::kForward, 0), on_segment(K::kForward, 1),
                           on_segment(K::kBackward, 1), on_segment(K::kRecompute, 0),
                           on_segment(K::kBackward, 0)};
  const auto without = estimate_memory(program, shape);
  shape.segments[0].kept_bytes = 24;
  const auto with = estimate_memory(program, shape);
  const std::vector<int64_t> more = {0, 24, 24, 0, 0};
  for (size_t i = 0; i < more.size(); ++i) {
    EXPECT_EQ(with.totals[i], without.totals[i] + more[i]) << i;
  }
  EXPECT_EQ(with.after, with.before);
}

TEST(MemoryModel, TheRestOfADividedBackwardLivesUntilItsSecondHalf) {
  StepShape shape = chain(2, 4, 1, 1);
  for (SegmentShape& segment : shape.segments) {
    segment.rest_bytes = 48;
    segment.input_half_temporary_bytes = 3;
    segment.weight_half_temporary_bytes = 5;
  }
  const Action f0 = on_segment(K::kForward, 0), f1 = on_segment(K::kForward, 1);
  const auto whole = estimate_memory(
      {f0, f1, on_segment(K::kBackward, 1), on_segment(K::kBackward, 0)}, shape);
  const auto halves = estimate_memory(
      {f0, f1, on_segment(K::kBackwardInput, 1), on_segment(K::kBackwardInput, 0),
       on_segment(K::kBackwardWeight, 1), on_segment(K::kBackwardWeight, 0)},
      shape);
  EXPECT_EQ(halves.totals[2], whole.totals[2] - 6 + 3);
  EXPECT_EQ(halves.totals[3], whole.totals[3] - 6 + 3 + 48);
  const int64_t gradients = 2 * 32 * 4;  // whole, of two groups
  EXPECT_EQ(halves.totals[4], halves.before.total() + gradients + 2 * 48 + 5);
  EXPECT_EQ(halves.totals[5], halves.before.total() + gradients + 48 + 5);
  EXPECT_EQ(halves.after.activations, 0);
}

TEST(MemoryModel, ARecomputedSegmentKeepsOnlyItsInputsMeanwhile) {
  StepShape shape = chain(2, 1, 1, 1);
  shape.segments[0].recompute = true;
  const MemoryEstimate estimate =
      estimate_memory({on_segment(K::kForward, 0), on_segment(K::kForward, 1),
                       on_segment(K::kBackward, 1), on_segment(K::kRecompute, 0),
                       on_segment(K::kBackward, 0)},
                      shape);
  const int64_t base = estimate.before.total() + 16;
  EXPECT_EQ(estimate.totals, (std::vector<int64_t>{
                                 base + 16 + 64 + 4, base + 16 + 16 + 64 + 4,
                                 base + 16 + 16 + 64 + 16 + 6,  // gradient of the input
                                 base + 16 + 16 + 64 + 4,  // it and the outputs again
                                 base + 16 + 16 + 64 + 6}));
  EXPECT_EQ(estimate.after, estimate.before);
}

TEST(MemoryModel, AForwardProgramKeepsOneBoundary) {
  const StepShape shape = chain(3, 1, 1, 1);
  const MemoryEstimate estimate =
      estimate_memory({on_segment(K::kForward, 0), on_segment(K::kForward, 1),
                       on_segment(K::kForward, 2)},
                      shape);
  const int64_t base = estimate.before.total() + 16;
  EXPECT_EQ(estimate.totals,
            (std::vector<int64_t>{base + 16 + 64 + 4, base + 16 + 16 + 64 + 4,
                                  base + 16 + 16 + 64 + 4}));
  EXPECT_EQ(estimate.after, estimate.before);
}

TEST(MemoryModel, WhatIsOffloadedIsOnTheHostFromItsStartToTheWaitOfItsReload) {
  StepShape shape = chain(3, 1, 1, 1);
  for (SegmentShape& segment : shape.segments) {
    segment.saves_outputs = false;
    segment.offload = true;
    segment.offload_bytes = 80;  // with the inputs
  }
  const Action leave = on_segment(K::kOffload, 1), come = on_segment(K::kReload, 1);
  const std::vector<Action> forwards = {on_segment(K::kForward, 0),
                                        on_segment(K::kForward, 1),
                                        on_segment(K::kForward, 2)};
  const std::vector<Action> backwards = {on_segment(K::kBackward, 2),
                                         on_segment(K::kBackward, 1),
                                         on_segment(K::kBackward, 0)};
  const Program with = {forwards[0],     forwards[1],  leave, forwards[2],
                        wait_for(leave), backwards[0], come,  wait_for(come),
                        backwards[1],    backwards[2]};
  const Program without = {forwards[0],  forwards[1],  forwards[2],
                           backwards[0], backwards[1], backwards[2]};
  const MemoryEstimate kept = estimate_memory(without, shape);
  const MemoryEstimate estimate = estimate_memory(with, shape);
  EXPECT_EQ(estimate.totals[3], kept.totals[2]);  // still being copied
  EXPECT_EQ(estimate.totals[5], kept.totals[3] - 80);
  EXPECT_EQ(estimate.totals[8], kept.totals[4]);
  EXPECT_EQ(estimate.host_peak, 80);
  EXPECT_EQ(kept.host_peak, 0);
  EXPECT_EQ(estimate.after, estimate.before);

  // The segment before holds its outputs for its own backward as well.
  shape.segments[0].saves_outputs = true;
  EXPECT_EQ(estimate_memory(with, shape).totals[5],
            estimate_memory(without, shape).totals[3] - (80 - 16));

  shape.host_is_device = true;
  EXPECT_EQ(estimate_memory(with, shape).totals[5],
            estimate_memory(without, shape).totals[3]);
  EXPECT_EQ(estimate_memory(with, shape).host_peak, 0);
}

}  // namespace
}  // namespace torchtitan::plan
