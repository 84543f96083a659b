#include "plan/schedules/registry.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace torchtitan::plan::schedules {
namespace {

int64_t most_live(const std::vector<StageAction>& actions) {
  int64_t live = 0, most = 0;
  for (const StageAction& action : actions) {
    if (action.work == StageWork::kForward) most = std::max(most, ++live);
    live -= action.work == StageWork::kBackward ||
            action.work == StageWork::kBackwardWeight;
  }
  return most;
}

// Every size up to 16 ranks, 4 stages per rank and 64 microbatches.
template <class Visit>
void for_all_sizes(const ScheduleFacts& facts, const Visit& visit) {
  for (int64_t p = 1; p <= 16; ++p) {
    for (int64_t v = 1; v <= 4; ++v) {
      if (facts.stages_per_rank != 0 && v != facts.stages_per_rank) continue;
      for (int64_t m = 1; m <= 64; ++m) visit(PipelineSize{p, v, m});
    }
  }
}

TEST(Registry, EverySizeGivesAScheduleThatRuns) {
  for (const ScheduleFacts& facts : all_schedules()) {
    for_all_sizes(facts, [&](const PipelineSize& size) {
      const Schedule schedule = facts.make(size);
      const auto problem = find_problem(schedule, ProgramKind::kTraining);
      ASSERT_FALSE(problem) << facts.name << " " << size.num_ranks << " ranks, "
                            << size.stages_per_rank << " stages, "
                            << size.num_microbatches << " microbatches: rank "
                            << problem->rank << ", action " << problem->index << " "
                            << problem->what;
    });
  }
}

TEST(Registry, LiveBoundsHoldAndAreReached) {
  for (const ScheduleFacts& facts : all_schedules()) {
    for_all_sizes(facts, [&](const PipelineSize& size) {
      const Schedule schedule = facts.make(size);
      for (int64_t rank = 0; rank < size.num_ranks; ++rank) {
        ASSERT_LE(most_live(schedule.ranks[rank]), facts.live_bound(size, rank))
            << facts.name << " " << size.num_ranks << " ranks, " << size.stages_per_rank
            << " stages, " << size.num_microbatches << " microbatches, rank " << rank;
      }
    });
    const int64_t v = facts.stages_per_rank == 0 ? 3 : facts.stages_per_rank;
    const PipelineSize size{4, v, 16};
    int64_t slack = 100;
    for (int64_t rank = 0; rank < 4; ++rank) {
      slack = std::min(slack, facts.live_bound(size, rank) -
                                  most_live(facts.make(size).ranks[rank]));
    }
    EXPECT_EQ(slack, 0) << facts.name;
  }
}

TEST(Registry, BoundedMemoryMeansThatMoreMicrobatchesLiveNoLonger) {
  for (const ScheduleFacts& facts : all_schedules()) {
    const int64_t v = facts.stages_per_rank == 0 ? 2 : facts.stages_per_rank;
    const auto live = [&](int64_t m) {
      return most_live(facts.make({4, v, m}).ranks[0]);
    };
    EXPECT_EQ(live(16) == live(64), facts.bounded_memory) << facts.name;
  }
}

TEST(Registry, FactsAreTrueOfTheSchedules) {
  for (const ScheduleFacts& facts : all_schedules()) {
    const int64_t v = facts.stages_per_rank == 0 ? 2 : facts.stages_per_rank;
    const Schedule schedule = facts.make({4, v, 16});
    bool splits = false, overlaps = false;
    for (const auto& actions : schedule.ranks) {
      for (const StageAction& action : actions) {
        splits = splits || action.work == StageWork::kBackwardInput;
        overlaps = overlaps || action.overlaps_next;
      }
    }
    EXPECT_EQ(splits, facts.splits_backward) << facts.name;
    EXPECT_EQ(overlaps, facts.overlaps) << facts.name;
    EXPECT_EQ(schedule.num_stages(), 4 * v);
    EXPECT_EQ(schedule.rank_of_stage.back(), facts.v_shaped ? 0 : 3) << facts.name;
  }
}

TEST(Registry, NamesMayBeInAnyCase) {
  EXPECT_EQ(find_schedule("interleaved1f1b").name, "Interleaved1F1B");
  EXPECT_EQ(find_schedule("ZBVZEROBUBBLE").name, "ZBVZeroBubble");
}

std::string error_of(const std::string& name, int64_t p, int64_t v, int64_t m) {
  try {
    make_schedule(name, p, v, m);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(Registry, RefusesWhatAScheduleDoesNotTakeWithTheNumbers) {
  EXPECT_EQ(error_of("2F2B", 4, 1, 8),
            "unknown pipeline schedule '2F2B', expected one of 1F1B, GPipe, "
            "Interleaved1F1B, InterleavedZeroBubble, LoopedBFS, ZBVZeroBubble, "
            "DualPipeV");
  EXPECT_EQ(error_of("gpipe", 4, 2, 8),
            "GPipe: takes exactly 1 stage per rank, that is 4 on 4 ranks, got 2 per "
            "rank");
  EXPECT_EQ(error_of("DualPipeV", 4, 1, 8),
            "DualPipeV: takes exactly 2 stages per rank, that is 8 on 4 ranks, got 1 "
            "per rank");
  EXPECT_EQ(error_of("1F1B", 4, 1, 0), "1F1B: needs at least 1 microbatch, got 0");
  EXPECT_EQ(error_of("1F1B", 0, 1, 1), "1F1B: needs at least 1 rank, got 0");
  EXPECT_EQ(error_of("LoopedBFS", 2, 0, 1),
            "LoopedBFS: needs at least 1 stage per rank, got 0");
}

TEST(Registry, PublishedBubbles) {
  const auto bubble = [](const char* name, int64_t v, int64_t m) {
    return find_schedule(name).bubble({4, v, m}).value_or(-1.0);
  };
  EXPECT_DOUBLE_EQ(bubble("1F1B", 1, 8), 3.0 / 11.0);
  EXPECT_DOUBLE_EQ(bubble("GPipe", 1, 8), 3.0 / 11.0);
  EXPECT_DOUBLE_EQ(bubble("Interleaved1F1B", 2, 8), 3.0 / 19.0);
  EXPECT_DOUBLE_EQ(bubble("LoopedBFS", 2, 8), 3.0 / 19.0);
  EXPECT_DOUBLE_EQ(bubble("InterleavedZeroBubble", 2, 8), 3.0 / 51.0);
  EXPECT_DOUBLE_EQ(bubble("ZBVZeroBubble", 2, 8), 3.0 / 51.0);
  EXPECT_DOUBLE_EQ(bubble("DualPipeV", 2, 8), 6.0 / 54.0);
  EXPECT_EQ(bubble("Interleaved1F1B", 2, 3), -1.0);
  EXPECT_EQ(bubble("DualPipeV", 2, 7), -1.0);
}

}  // namespace
}  // namespace torchtitan::plan::schedules
