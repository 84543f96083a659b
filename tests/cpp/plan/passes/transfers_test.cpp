#include "plan/passes/transfers.h"

#include <gtest/gtest.h>

#include "plan/schedules/csv.h"
#include "plan/schedules/forward_only.h"
#include "plan/schedules/one_f_one_b.h"
#include "plan/shapes.h"

namespace torchtitan::plan::passes {
namespace {

using schedules::forward_only;
using schedules::one_f_one_b;
using schedules::parse_csv;

TEST(Transfers, AreSentAtOnceAndReceivedAheadOfTheWorkThatNeedsThem) {
  const std::vector<Program> programs = add_transfers(one_f_one_b(2, 2));
  EXPECT_EQ(one_line(programs[0]),
            "Forward st0 mb0; SendActivation st0 mb0; "
            "ReceiveGradient st0 mb0; Forward st0 mb1; SendActivation st0 mb1; "
            "ReceiveGradient st0 mb1; "
            "Wait ReceiveGradient st0 mb0; Wait SendActivation st0 mb0; "
            "Backward st0 mb0; "
            "Wait ReceiveGradient st0 mb1; Wait SendActivation st0 mb1; "
            "Backward st0 mb1");
  // No message tells rank 1 that its gradients have arrived.
  EXPECT_EQ(one_line(programs[1]),
            "ReceiveActivation st1 mb0; Wait ReceiveActivation st1 mb0; "
            "Forward st1 mb0; ReceiveActivation st1 mb1; "
            "Backward st1 mb0; SendGradient st1 mb0; "
            "Wait ReceiveActivation st1 mb1; Forward st1 mb1; "
            "Backward st1 mb1; SendGradient st1 mb1; "
            "Wait SendGradient st1 mb0; Wait SendGradient st1 mb1");
}

TEST(Transfers, DepthZeroReceivesWithoutOverlap) {
  EXPECT_EQ(one_line(add_transfers(forward_only(one_f_one_b(2, 2)), 0)[1]),
            "ReceiveActivation st1 mb0; Wait ReceiveActivation st1 mb0; "
            "Forward st1 mb0; "
            "ReceiveActivation st1 mb1; Wait ReceiveActivation st1 mb1; "
            "Forward st1 mb1");
  EXPECT_EQ(one_line(add_transfers(forward_only(one_f_one_b(2, 2)), 5)[1]),
            "ReceiveActivation st1 mb0; ReceiveActivation st1 mb1; "
            "Wait ReceiveActivation st1 mb0; Forward st1 mb0; "
            "Wait ReceiveActivation st1 mb1; Forward st1 mb1");
}

TEST(Transfers, AChannelsReceivesStartInTheOrderOfItsSends) {
  // Rank 1 needs microbatch 1 first, but it is sent second.
  const auto programs = add_transfers(parse_csv("0F0,0F1,0B1,0B0\n1F1,1B1,1F0,1B0"));
  EXPECT_EQ(one_line(programs[1]),
            "ReceiveActivation st1 mb0; ReceiveActivation st1 mb1; "
            "Wait ReceiveActivation st1 mb1; Forward st1 mb1; "
            "Backward st1 mb1; SendGradient st1 mb1; "
            "Wait ReceiveActivation st1 mb0; Forward st1 mb0; "
            "Backward st1 mb0; SendGradient st1 mb0; "
            "Wait SendGradient st1 mb1; Wait SendGradient st1 mb0");
  // Since microbatch 1 has arrived, microbatch 0 has.
  EXPECT_EQ(one_line(programs[0]),
            "Forward st0 mb0; SendActivation st0 mb0; "
            "ReceiveGradient st0 mb1; Forward st0 mb1; SendActivation st0 mb1; "
            "ReceiveGradient st0 mb0; Wait ReceiveGradient st0 mb1; "
            "Wait SendActivation st0 mb0; Wait SendActivation st0 mb1; "
            "Backward st0 mb1; Wait ReceiveGradient st0 mb0; Backward st0 mb0");
}

TEST(Transfers, StagesOfOneRankNeedNone) {
  const auto programs =
      add_transfers(parse_csv("0F0,3F0,3B0,0B0\n"
                              "1F0,2F0,2B0,1B0"));
  EXPECT_EQ(one_line(programs[1]),
            "ReceiveActivation st1 mb0; Wait ReceiveActivation st1 mb0; "
            "Forward st1 mb0; ReceiveGradient st2 mb0; "
            "Forward st2 mb0; SendActivation st2 mb0; Wait ReceiveGradient st2 mb0; "
            "Wait SendActivation st2 mb0; Backward st2 mb0; Backward st1 mb0; "
            "SendGradient st1 mb0; Wait SendGradient st1 mb0");
}

TEST(Transfers, OnlyTheFirstHalfOfABackwardMakesAGradient) {
  const auto programs = add_transfers(parse_csv("0F0,0I0,0W0\n1F0,1I0,1W0"));
  EXPECT_EQ(one_line(programs[1]),
            "ReceiveActivation st1 mb0; Wait ReceiveActivation st1 mb0; "
            "Forward st1 mb0; BackwardInput st1 mb0; SendGradient st1 mb0; "
            "BackwardWeight st1 mb0; Wait SendGradient st1 mb0");
}

TEST(Transfers, APairStaysTogetherBetweenItsWaitsAndItsSends) {
  const auto programs =
      add_transfers(parse_csv("0F0,0F1,0B0,0B1\n"
                              "1F0,(1F1;1B0)OVERLAP_F_B,1B1\n"
                              "2F0,2B0,2F1,2B1"));
  EXPECT_EQ(one_line(programs[1]),
            "ReceiveActivation st1 mb0; ReceiveActivation st1 mb1; "
            "ReceiveGradient st1 mb0; "
            "Wait ReceiveActivation st1 mb0; Forward st1 mb0; "
            "SendActivation st1 mb0; ReceiveGradient st1 mb1; "
            "Wait ReceiveActivation st1 mb1; Wait ReceiveGradient st1 mb0; "
            "Wait SendActivation st1 mb0; "
            "Forward st1 mb1 with the next; Backward st1 mb0; "
            "SendActivation st1 mb1; SendGradient st1 mb0; "
            "Wait ReceiveGradient st1 mb1; Wait SendActivation st1 mb1; "
            "Backward st1 mb1; SendGradient st1 mb1; "
            "Wait SendGradient st1 mb0; Wait SendGradient st1 mb1");
}

TEST(Transfers, KnowledgePassesThroughOtherRanks) {
  // Rank 0 hears of the arrival of 0F0 at rank 1 only through rank 2.
  const auto programs =
      add_transfers(parse_csv("0F0,3F0,3B0,0B0\n"
                              "1F0,1B0\n"
                              "2F0,2B0"));
  EXPECT_EQ(one_line(programs[0]),
            "ReceiveActivation st3 mb0; Forward st0 mb0; SendActivation st0 mb0; "
            "Wait ReceiveActivation st3 mb0; "
            "Wait SendActivation st0 mb0; Forward st3 mb0; "
            "ReceiveGradient st0 mb0; Backward st3 mb0; SendGradient st3 mb0; "
            "Wait ReceiveGradient st0 mb0; Wait SendGradient st3 mb0; "
            "Backward st0 mb0");
}

TEST(Transfers, RefusesAScheduleThatCannotRunAndANegativeDepth) {
  EXPECT_THROW(add_transfers(one_f_one_b(2, 2), -1), std::invalid_argument);
  schedules::Schedule schedule = one_f_one_b(2, 2);
  schedule.ranks[1].pop_back();
  EXPECT_THROW(add_transfers(schedule), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::plan::passes
