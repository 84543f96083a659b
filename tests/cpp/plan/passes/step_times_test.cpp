// Simulated times of whole steps of all ranks of a pipeline.
#include <gtest/gtest.h>

#include <algorithm>

#include "plan/passes/step_program.h"
#include "plan/passes/transfers.h"
#include "plan/schedules/registry.h"
#include "plan/shapes.h"
#include "plan/simulate.h"
#include "plan/simulate_pipeline.h"

namespace torchtitan::plan::passes {
namespace {

using K = ActionKind;
using schedules::PipelineSize;
using schedules::Schedule;

// A stage takes 1 s forward and 1 s for each half of its backward.
constexpr double kFlops = 100.0;
const CostModel kFree{.flops_per_second = kFlops,
                      .memory_bytes_per_second = 1e30,
                      .links = {{"pp", {1e30, 0.0}}}};

// One segment a stage, one group a segment.
StepShape shape_of(const Schedule& schedule, size_t rank, int64_t shards = 1) {
  const auto num_stages = static_cast<int64_t>(schedule.rank_of_stage.size());
  const auto on_rank = [&](int64_t stage) {
    return stage < 0 || stage >= num_stages ||
           schedule.rank_of_stage[static_cast<size_t>(stage)] ==
               static_cast<int64_t>(rank);
  };
  StepShape shape{
      .segments = {}, .groups = {}, .num_microbatches = schedule.num_microbatches};
  for (int64_t stage = 0; stage < num_stages; ++stage) {
    if (!on_rank(stage)) continue;
    const auto position = static_cast<int64_t>(shape.segments.size());
    shape.segments.push_back(small_segment(stage, {position}));
    shape.segments.back().weight_flops = 100;
    shape.groups.push_back(small_group(stage, shards, 1, Reshard::kAfterStep));
    shape.stages.push_back({.index = stage,
                            .first_segment = position,
                            .num_segments = 1,
                            .is_last = stage + 1 == num_stages,
                            .receives = !on_rank(stage - 1),
                            .sends = !on_rank(stage + 1),
                            .received_bytes = on_rank(stage - 1) ? 0 : 16});
  }
  shape.pipeline_ranks = static_cast<int64_t>(schedule.ranks.size());
  return shape;
}

std::vector<StepShape> shapes_of(const Schedule& schedule, int64_t shards = 1) {
  std::vector<StepShape> shapes;
  for (size_t rank = 0; rank < schedule.ranks.size(); ++rank) {
    shapes.push_back(shape_of(schedule, rank, shards));
  }
  return shapes;
}

std::vector<Simulation> simulate_steps(const Schedule& schedule,
                                       const std::vector<StepShape>& shapes,
                                       const CostModel& cost) {
  const auto messages = add_transfers(schedule);
  std::vector<Program> programs;
  for (size_t rank = 0; rank < shapes.size(); ++rank) {
    programs.push_back(build_step_program(messages[rank], shapes[rank],
                                          {.prefetch_depth = 1,
                                           .reduce_depth = 1,
                                           .offload_depth = 1,
                                           .optimizer = OptimizerTiming::kAtEnd}));
  }
  return simulate(programs, shapes, cost);
}

double seconds_of(const std::vector<Simulation>& ranks) {
  double seconds = 0.0;
  for (const Simulation& rank : ranks) seconds = std::max(seconds, rank.seconds);
  return seconds;
}

TEST(StepTimes, EqualStagesWithoutCommunicationTakeTheTimeOfTheFormula) {
  for (const char* name : {"GPipe", "1F1B"}) {
    for (const int64_t p : {2, 3, 4, 8}) {
      for (const int64_t m : {1, 2, 7, 16}) {
        const auto schedule = schedules::make_schedule(name, p, 1, m);
        const auto ranks = simulate_steps(schedule, shapes_of(schedule), kFree);
        const double forward = 1.0, backward = 2.0;
        EXPECT_NEAR(seconds_of(ranks),
                    static_cast<double>(m + p - 1) * (forward + backward), 1e-9)
            << name << " " << p << " " << m;
        for (const Simulation& rank : ranks) {
          EXPECT_NEAR(rank.compute_seconds,
                      static_cast<double>(m) * (forward + backward), 1e-9);
        }
      }
    }
  }
}

TEST(StepTimes, EveryScheduleTakesTheTimeOfItsStages) {
  CostModel slow = kFree;
  slow.links["pp"] = {.bytes_per_second = 64.0, .latency_seconds = 0.25};
  for (const auto& facts : schedules::all_schedules()) {
    const int64_t v = facts.multi_stage ? 2 : 1;
    const auto schedule = facts.make({4, v, 8});
    const std::vector<StageCost> stages(static_cast<size_t>(4 * v),
                                        {.forward_seconds = 1.0,
                                         .backward_seconds = 2.0,
                                         .backward_input_seconds = 1.0,
                                         .backward_weight_seconds = 1.0,
                                         .output_bytes = 16.0});
    const auto programs = add_transfers(schedule);
    EXPECT_NEAR(seconds_of(simulate_steps(schedule, shapes_of(schedule), kFree)),
                simulate_pipeline(programs, stages, std::nullopt).seconds, 1e-9)
        << facts.name;
    // After the last backward comes one more latency: that of the norm.
    EXPECT_NEAR(seconds_of(simulate_steps(schedule, shapes_of(schedule), slow)),
                simulate_pipeline(programs, stages, slow.links["pp"]).seconds + 0.25,
                1e-9)
        << facts.name;
  }
}

// Gathers of 4 shards take 1.5 s, reductions 2.5 s.
const CostModel kSharded{
    .flops_per_second = kFlops,
    .memory_bytes_per_second = 448.0,
    .links = {{"fsdp", {48.0, 0.5}}, {"pp", {16.0, 0.125}}, {"loss", {1.0, 0.25}}}};

TEST(StepTimes, ShardsAreGatheredAndReducedOnEachRankAtItsOwnTime) {
  const auto schedule = schedules::make_schedule("1F1B", 2, 1, 1);
  const auto ranks = simulate_steps(schedule, shapes_of(schedule, 4), kSharded);
  // Rank 0: gathers until 1.5, forward until 2.5, message until 3.625; rank 1: forward
  // until 4.625, backward until 6.625, reduces until 9.125, message until 7.75; rank 0:
  // backward until 9.75, reduces until 12.25. Then the loss and the norm, 2 x 0.25 and
  // 0.125, and the optimizer: 8 elements of 4 + 8 bytes twice and 4 once, 0.5 s.
  for (const Simulation& rank : ranks) {
    EXPECT_NEAR(rank.seconds, 12.25 + 0.625 + 0.5, 1e-9);
    EXPECT_NEAR(rank.compute_seconds, 3.5, 1e-9);
  }
  EXPECT_NEAR(ranks[0].exposed_seconds, ranks[0].seconds - 3.5, 1e-9);
}

TEST(StepTimes, CopiesOfAGroupAreAddedUpWhenTheLastRankIsThere) {
  const auto schedule = schedules::make_schedule("1F1B", 2, 1, 1);
  auto shapes = shapes_of(schedule);
  for (StepShape& shape : shapes) {
    shape.groups[0].name = "embedding";
    shape.groups[0].copies = 2;
  }
  const auto ranks = simulate_steps(schedule, shapes, kSharded);
  // Backward of rank 0 ends at 1 + 1.125 + 3 + 1.125 + 2; 32 bytes pass in 2.125 s.
  for (const Simulation& rank : ranks) {
    EXPECT_NEAR(rank.seconds, 8.25 + 2.125 + 0.625 + 0.5, 1e-9);
  }
}

TEST(StepTimes, RefusesWhatNeverEnds) {
  const auto schedule = schedules::make_schedule("1F1B", 2, 1, 1);
  const auto shapes = shapes_of(schedule);
  const auto error = [&](std::vector<Program> programs) -> std::string {
    try {
      simulate(programs, shapes, kFree);
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "";
  };
  const Action send{.kind = K::kSendActivation, .stage = 0, .microbatch = 0};
  const Action receive{.kind = K::kReceiveActivation, .stage = 1, .microbatch = 0};
  const Action clip{.kind = K::kClipGradient};
  EXPECT_EQ(error({{send, wait_for(send)}, {receive, wait_for(receive)}}), "");
  EXPECT_EQ(error({{wait_for(send), send}, {receive, wait_for(receive)}}),
            "simulate: rank 0 waits for ever in action 0");
  EXPECT_EQ(error({{}, {receive}}),
            "simulate: rank 1 waits for ever for ReceiveActivation st1 mb0, which "
            "nobody sends");
  EXPECT_EQ(error({{send}, {}}),
            "simulate: rank 0: nobody receives SendActivation st0 mb0");
  EXPECT_EQ(error({{clip}, {}}), "simulate: rank 0 waits for ever in action 0");
  EXPECT_EQ(error({{}}), "simulate: got programs of 1 ranks and shapes of 2");
}

}  // namespace
}  // namespace torchtitan::plan::passes
