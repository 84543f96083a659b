#include "plan/simulate.h"

#include <gtest/gtest.h>

#include "plan/shapes.h"

namespace torchtitan::plan {
namespace {

using K = ActionKind;

// 100 flops forward and 200 backward a segment; a gather of 4 shards moves 3/4 of 64
// bytes, a reduction 3/4 of 128.
const CostModel kCost{
    .flops_per_second = 100.0,
    .memory_bytes_per_second = 64.0,
    .links = {{"fsdp", {.bytes_per_second = 48.0, .latency_seconds = 0.5}},
              {"dp_replicate", {32.0, 0.0}},
              {"loss", {1.0, 0.25}}}};

Action on_group(K kind, int64_t group) { return {.kind = kind, .group = group}; }
Action on_segment(K kind, int64_t segment) {
  return {.kind = kind, .segment = segment, .microbatch = 0};
}

TEST(Simulate, ComputeTakesFlopsOverRate) {
  const Simulation simulation =
      simulate({on_segment(K::kForward, 0), on_segment(K::kRecompute, 0),
                on_segment(K::kBackward, 0)},
               chain(1, 1, 1, 1), kCost);
  EXPECT_DOUBLE_EQ(simulation.seconds, 3.9);
  EXPECT_DOUBLE_EQ(simulation.compute_seconds, 3.9);
  EXPECT_DOUBLE_EQ(simulation.exposed_seconds, 0.0);
  EXPECT_DOUBLE_EQ(simulation.spans[2].begin, 1.9);
}

TEST(Simulate, TheHalvesOfABackwardShareItsFlopsAndHaveExchangesOfTheirOwn) {
  StepShape shape = chain(1, 4, 1, 1);
  shape.segments[0].weight_flops = 80;
  const auto seconds = [&](K kind) {
    return simulate({on_segment(kind, 0)}, shape, kCost).compute_seconds;
  };
  EXPECT_DOUBLE_EQ(seconds(K::kBackwardInput), 1.2);
  EXPECT_DOUBLE_EQ(seconds(K::kBackwardWeight), 0.8);
  shape.segments[0].backward_exchanges = {{"fsdp", "all_gather", 4, 640}};
  shape.segments[0].backward_input_exchanges = {{"fsdp", "all_gather", 4, 64}};
  shape.segments[0].backward_weight_exchanges = {{"fsdp", "all_reduce", 4, 64}};
  EXPECT_DOUBLE_EQ(seconds(K::kBackwardInput), 1.2 + 1.5);
  EXPECT_DOUBLE_EQ(seconds(K::kBackwardWeight), 0.8 + 2.5);
}

TEST(Simulate, OnlyTheUncoveredPartOfATransferIsExposed) {
  const StepShape shape = chain(2, 4, 1, 1);
  const Action gather0 = on_group(K::kUnshard, 0);
  const Action gather1 = on_group(K::kUnshard, 1);
  const Simulation serial =
      simulate({gather0, wait_for(gather0), on_segment(K::kForward, 0), gather1,
                wait_for(gather1), on_segment(K::kForward, 1)},
               shape, kCost);
  EXPECT_DOUBLE_EQ(serial.seconds, 1.5 + 1.0 + 1.5 + 1.0);
  EXPECT_DOUBLE_EQ(serial.exposed_seconds, 3.0);
  const Simulation overlapped =
      simulate({gather0, wait_for(gather0), gather1, on_segment(K::kForward, 0),
                wait_for(gather1), on_segment(K::kForward, 1)},
               shape, kCost);
  EXPECT_DOUBLE_EQ(overlapped.seconds, 1.5 + 1.5 + 1.0);
  EXPECT_DOUBLE_EQ(overlapped.exposed_seconds, 2.0);
}

TEST(Simulate, ASegmentWaitsForItsExchangesButSendsWhileItComputes) {
  StepShape shape = chain(1, 1, 1, 1);
  auto& segment = shape.segments[0];
  const auto forward = [&] {
    return simulate({on_segment(K::kForward, 0)}, shape, kCost).compute_seconds;
  };
  segment.forward_exchanges = {{"fsdp", "all_gather", 4, 64}};
  EXPECT_DOUBLE_EQ(forward(), 1.0 + 1.5);
  segment.forward_exchanges = {{"fsdp", "all_reduce", 4, 64}};
  EXPECT_DOUBLE_EQ(forward(), 1.0 + 2.5);
  segment.forward_exchanges = {{"fsdp", "send", 4, 12}, {"fsdp", "recv", 4, 12}};
  EXPECT_DOUBLE_EQ(forward(), 1.0);
  segment.forward_exchanges = {{"fsdp", "send", 4, 96}, {"fsdp", "recv", 4, 96}};
  EXPECT_DOUBLE_EQ(forward(), 2.5);
  const Simulation backward = simulate({on_segment(K::kBackward, 0)}, shape, kCost);
  EXPECT_DOUBLE_EQ(backward.compute_seconds, 2.0);
  segment.forward_exchanges = {{"nowhere", "all_gather", 4, 64}};
  EXPECT_THROW(forward(), std::invalid_argument);
}

TEST(Simulate, TransfersOfOneAxisQueueAndOfTwoAxesDoNot) {
  const StepShape shape = chain(2, 4, 2, 1);
  const Action reduce0 = on_group(K::kReduceGradient, 0);
  const Action reduce1 = on_group(K::kReduceGradient, 1);
  const Action replicas = on_group(K::kAllReduceGradient, 0);
  const Simulation simulation =
      simulate({reduce0, reduce1, replicas, wait_for(reduce1)}, shape, kCost);
  EXPECT_DOUBLE_EQ(simulation.spans[0].end, 0.5 + 96.0 / 48.0);
  EXPECT_DOUBLE_EQ(simulation.spans[1].begin, 2.5);
  EXPECT_DOUBLE_EQ(simulation.spans[2].begin, 0.0);
  EXPECT_DOUBLE_EQ(simulation.spans[2].end, 2.0 * 0.5 * 32.0 / 32.0);
  EXPECT_DOUBLE_EQ(simulation.seconds, 5.0);
}

TEST(Simulate, ScalarsCostLatencyAndTheOptimizerMemory) {
  const StepShape shape = chain(2, 4, 1, 1);
  const Action count{.kind = K::kCountTokens};
  const Simulation simulation = simulate({count,
                                          wait_for(count),
                                          {.kind = K::kClipGradient},
                                          {.kind = K::kOptimizerStep},
                                          on_group(K::kOptimizerStep, 0)},
                                         shape, kCost);
  // 8 elements a shard: 8 state bytes and 4 stored read and written, 4 reduced read.
  const double group_seconds = 8.0 * (2 * 8 + 2 * 4 + 4) / 64.0;
  EXPECT_DOUBLE_EQ(simulation.exposed_seconds, 3 * 0.25);
  EXPECT_DOUBLE_EQ(simulation.compute_seconds, 3 * group_seconds);
}

TEST(Simulate, RefusesRatesThatAreNotPositiveAndAxesWithoutALink) {
  CostModel cost = kCost;
  cost.flops_per_second = 0.0;
  EXPECT_THROW(simulate({}, chain(1, 1, 1, 1), cost), std::invalid_argument);
  cost = kCost;
  cost.links.erase("fsdp");
  try {
    simulate({on_group(K::kUnshard, 0)}, chain(1, 4, 1, 1), cost);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "simulate: Unshard g0 uses the axis 'fsdp', which has no link");
  }
  cost.links["fsdp"] = {.bytes_per_second = 1.0, .latency_seconds = -1.0};
  EXPECT_THROW(simulate({}, chain(1, 4, 1, 1), cost), std::invalid_argument);
}

TEST(Simulate, CopiesToAndFromHostMemoryPassBesideComputeOneAfterAnother) {
  StepShape shape = chain(2, 1, 1, 1);
  for (SegmentShape& segment : shape.segments) segment.offload_bytes = 30;
  CostModel cost = kCost;
  cost.links["host"] = {.bytes_per_second = 20.0, .latency_seconds = 0.5};
  const Program program = {on_segment(K::kForward, 0),
                           on_segment(K::kOffload, 0),
                           on_segment(K::kForward, 1),
                           on_segment(K::kOffload, 1),
                           wait_for(on_segment(K::kOffload, 0)),
                           wait_for(on_segment(K::kOffload, 1)),
                           on_segment(K::kReload, 1),
                           wait_for(on_segment(K::kReload, 1))};
  const Simulation simulation = simulate(program, shape, cost);
  EXPECT_DOUBLE_EQ(simulation.spans[1].begin, 1.0);
  EXPECT_DOUBLE_EQ(simulation.spans[1].end, 3.0);
  EXPECT_DOUBLE_EQ(simulation.spans[3].begin, 3.0);
  EXPECT_DOUBLE_EQ(simulation.spans[4].end, 3.0);
  EXPECT_DOUBLE_EQ(simulation.seconds, 7.0);
  EXPECT_DOUBLE_EQ(simulation.exposed_seconds, 5.0);
  shape.host_is_device = true;
  EXPECT_DOUBLE_EQ(simulate(program, shape, kCost).seconds, 2.0);
}

}  // namespace
}  // namespace torchtitan::plan
