// Simulated times of whole schedules against the formulas of their papers.
#include <gtest/gtest.h>

#include "plan/passes/transfers.h"
#include "plan/schedules/registry.h"
#include "plan/simulate_pipeline.h"

namespace torchtitan::plan::passes {
namespace {

using schedules::all_schedules;
using schedules::find_schedule;
using schedules::PipelineSize;
using schedules::ScheduleFacts;

PipelineSimulation simulate(const ScheduleFacts& facts, const PipelineSize& size,
                            const StageCost& cost) {
  const auto programs = add_transfers(facts.make(size));
  const std::vector<StageCost> stages(size.num_ranks * size.stages_per_rank, cost);
  return simulate_pipeline(programs, stages, std::nullopt);
}

constexpr StageCost kEqualHalves{.forward_seconds = 1.0,
                                 .backward_seconds = 2.0,
                                 .backward_input_seconds = 1.0,
                                 .backward_weight_seconds = 1.0};

TEST(PipelineTimes, BubblesAreThoseOfThePapers) {
  int num_compared = 0;
  for (const ScheduleFacts& facts : all_schedules()) {
    for (const int64_t p : {1, 2, 3, 4, 7, 8, 16}) {
      for (const int64_t v : {1, 2, 3, 4}) {
        if (facts.stages_per_rank != 0 && v != facts.stages_per_rank) continue;
        for (const int64_t m : {1, 2, 4, 7, 8, 9, 16, 17, 32, 64}) {
          const PipelineSize size{p, v, m};
          const auto published = facts.bubble(size);
          if (!published) continue;
          EXPECT_NEAR(simulate(facts, size, kEqualHalves).bubble(), *published, 1e-12)
              << facts.name << " " << p << " " << v << " " << m;
          ++num_compared;
        }
      }
    }
  }
  EXPECT_GT(num_compared, 500);
}

TEST(PipelineTimes, RanksOfZbvNeverIdleBetweenTheirFirstAndLastWork) {
  for (const int64_t p : {1, 2, 4, 8}) {
    for (const RankUse& rank :
         simulate(find_schedule("ZBVZeroBubble"), {p, 2, 4 * p}, kEqualHalves).ranks) {
      EXPECT_NEAR(rank.idle_share(), 0.0, 1e-12) << p;
    }
  }
}

TEST(PipelineTimes, PeaksOfLiveActivationsStayWithinTheirBounds) {
  for (const ScheduleFacts& facts : all_schedules()) {
    const int64_t v = facts.stages_per_rank == 0 ? 2 : facts.stages_per_rank;
    const PipelineSize size{4, v, 16};
    const PipelineSimulation simulation = simulate(facts, size, kEqualHalves);
    for (int64_t rank = 0; rank < 4; ++rank) {
      EXPECT_LE(simulation.ranks[rank].peak_live, facts.live_bound(size, rank));
    }
  }
}

// With depth 1 a receive is under way while the work before computes.
TEST(PipelineTimes, EarlyReceivesHideMessagesBehindCompute) {
  const auto schedule = find_schedule("1F1B").make({2, 1, 16});
  StageCost cost = kEqualHalves;
  cost.output_bytes = 1.0;
  const std::vector<StageCost> stages(2, cost);
  const Link link{.bytes_per_second = 4.0, .latency_seconds = 0.0};
  const double hidden =
      simulate_pipeline(add_transfers(schedule, 1), stages, link).seconds;
  const double exposed =
      simulate_pipeline(add_transfers(schedule, 0), stages, link).seconds;
  EXPECT_LT(hidden, exposed);
}

}  // namespace
}  // namespace torchtitan::plan::passes
