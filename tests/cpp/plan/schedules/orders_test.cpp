// The orders of small pipelines, as they are drawn in the papers.
#include <gtest/gtest.h>

#include "plan/schedules/csv.h"
#include "plan/schedules/dual_pipe_v.h"
#include "plan/schedules/forward_only.h"
#include "plan/schedules/gpipe.h"
#include "plan/schedules/interleaved.h"
#include "plan/schedules/looped_bfs.h"
#include "plan/schedules/one_f_one_b.h"
#include "plan/schedules/rounds.h"
#include "plan/schedules/zbv.h"
#include "plan/schedules/zero_bubble.h"

namespace torchtitan::plan::schedules {
namespace {

TEST(Orders, GPipeRunsAllForwardsFirst) {
  EXPECT_EQ(to_csv(gpipe(2, 3)),
            "0F0,0F1,0F2,0B0,0B1,0B2\n"
            "1F0,1F1,1F2,1B0,1B1,1B2\n");
}

TEST(Orders, OneForwardOneBackwardStartsBackwardAtOnce) {
  EXPECT_EQ(to_csv(one_f_one_b(3, 4)),
            "0F0,0F1,0F2,0B0,0F3,0B1,0B2,0B3\n"
            "1F0,1F1,1B0,1F2,1B1,1F3,1B2,1B3\n"
            "2F0,2B0,2F1,2B1,2F2,2B2,2F3,2B3\n");
  EXPECT_EQ(to_csv(one_f_one_b(3, 1)), "0F0,0B0\n1F0,1B0\n2F0,2B0\n");
}

TEST(Orders, InterleavedPassesThroughAllStagesInRounds) {
  EXPECT_EQ(to_csv(interleaved_one_f_one_b(2, 2, 4)),
            "0F0,0F1,2F0,2F1,0F2,2B0,0F3,2B1,2F2,0B0,2F3,0B1,2B2,2B3,0B2,0B3\n"
            "1F0,1F1,3F0,3B0,3F1,3B1,1F2,1B0,1F3,1B1,3F2,3B2,3F3,3B3,1B2,1B3\n");
}

TEST(Orders, RoundsAreNoSmallerThanTheRanksAndDifferByOneAtMost) {
  EXPECT_EQ(round_sizes(4, 8), (std::vector<int64_t>{4, 4}));
  EXPECT_EQ(round_sizes(4, 7), (std::vector<int64_t>{7}));
  EXPECT_EQ(round_sizes(4, 9), (std::vector<int64_t>{5, 4}));
  EXPECT_EQ(round_sizes(4, 3), (std::vector<int64_t>{3}));
  EXPECT_EQ(round_sizes(2, 7), (std::vector<int64_t>{3, 2, 2}));
}

TEST(Orders, LoopedBfsFinishesAStageBeforeTheNext) {
  EXPECT_EQ(to_csv(looped_bfs(2, 2, 2)),
            "0F0,0F1,2F0,2F1,2B1,2B0,0B1,0B0\n"
            "1F0,1F1,3F0,3F1,3B1,3B0,1B1,1B0\n");
}

TEST(Orders, ZeroBubbleHoldsBackAsManyWeightBackwardsAsItsRank) {
  EXPECT_EQ(to_csv(interleaved_zero_bubble(3, 1, 4)),
            "0F0,0F1,0F2,0I0,0W0,0F3,0I1,0W1,0I2,0W2,0I3,0W3\n"
            "1F0,1F1,1I0,1F2,1I1,1W0,1F3,1I2,1W1,1I3,1W2,1W3\n"
            "2F0,2I0,2F1,2I1,2F2,2I2,2W0,2F3,2I3,2W1,2W2,2W3\n");
}

TEST(Orders, ZbvComesBackToTheFirstRank) {
  EXPECT_EQ(
      to_csv(zbv_zero_bubble(2, 3)),
      "0F0,0F1,0F2,3F0,3I0,3W0,3F1,3I1,3W1,0I0,0W0,3F2,3I2,3W2,0I1,0W1,0I2,0W2\n"
      "1F0,2F0,1F1,2F1,2I0,2W0,1F2,1I0,1W0,2F2,2I1,2W1,1I1,2I2,1I2,1W1,2W2,1W2\n");
}

TEST(Orders, DualPipeVRunsForwardsTogetherWithBackwards) {
  EXPECT_EQ(to_csv(dual_pipe_v(1, 3)),
            "0F0,1F0,0F1,1B0,(1F1;0B0)OVERLAP_F_B,(0F2;1B1)OVERLAP_F_B,"
            "(1F2;0B1)OVERLAP_F_B,1B2,0I2,0W2\n");
}

TEST(Orders, FewerMicrobatchesThanFillAVLeaveTheOrderOfTheRest) {
  // The pair loses its backward.
  const RankOrder order{{StageWork::kForward, 0, 0, true},
                        {StageWork::kBackward, 1, 5},
                        {StageWork::kForward, 0, 6},
                        {StageWork::kBackward, 0, 0}};
  EXPECT_EQ(keep_microbatches(order, 5),
            (RankOrder{{StageWork::kForward, 0, 0}, {StageWork::kBackward, 0, 0}}));
}

TEST(Orders, ForwardOnlyKeepsTheForwards) {
  EXPECT_EQ(to_csv(forward_only(dual_pipe_v(1, 3))), "0F0,1F0,0F1,1F1,0F2,1F2\n");
  EXPECT_FALSE(find_problem(forward_only(interleaved_one_f_one_b(4, 3, 9)),
                            ProgramKind::kForwardOnly));
}

}  // namespace
}  // namespace torchtitan::plan::schedules
