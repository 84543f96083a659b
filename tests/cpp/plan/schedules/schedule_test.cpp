#include "plan/schedules/schedule.h"

#include <gtest/gtest.h>

#include "plan/schedules/one_f_one_b.h"

namespace torchtitan::plan::schedules {
namespace {

using enum StageWork;

std::string error_of(const Schedule& schedule,
                     ProgramKind kind = ProgramKind::kTraining) {
  try {
    check(schedule, kind);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(Schedule, AcceptsWhatCanRun) {
  EXPECT_EQ(error_of(one_f_one_b(3, 4)), "");
  EXPECT_EQ(error_of({{0}, 1, {{{kForward, 0, 0}}}}, ProgramKind::kForwardOnly), "");
}

TEST(Schedule, NamesRankAndActionOfWorkThatDoesNotFit) {
  const auto changed = [](size_t rank, size_t index, StageAction action) {
    Schedule schedule = one_f_one_b(2, 2);  // 0F0,0F1,0B0,0B1 and 1F0,1B0,1F1,1B1
    schedule.ranks[rank].at(index) = action;
    return error_of(schedule);
  };
  EXPECT_EQ(changed(1, 2, {kForward, 0, 1}),
            "schedule, rank 1, action 2 (0F1): stage 0 is on rank 0");
  EXPECT_EQ(changed(0, 1, {kForward, 2, 1}),
            "schedule, rank 0, action 1 (2F1): there are 2 stages");
  EXPECT_EQ(changed(0, 1, {kForward, 0, 2}),
            "schedule, rank 0, action 1 (0F2): there are 2 microbatches");
  EXPECT_EQ(changed(0, 1, {kForward, 0, 0}),
            "schedule, rank 0, action 1 (0F0): comes twice");
  EXPECT_EQ(changed(0, 1, {kBackward, 0, 1}),
            "schedule, rank 0, action 1 (0B1): comes before its forward");
  EXPECT_EQ(changed(0, 3, {kBackwardInput, 0, 1}),
            "schedule, rank 0, action 4 (the end): 0W1 is missing");
  EXPECT_EQ(changed(0, 3, {kBackwardWeight, 0, 1}),
            "schedule, rank 0, action 3 (0W1): comes before its backward of the "
            "inputs");
  EXPECT_EQ(changed(0, 3, {kBackwardWeight, 0, 0}),
            "schedule, rank 0, action 3 (0W0): comes twice");
  EXPECT_EQ(changed(0, 0, {kForward, 0, 0, true}),
            "schedule, rank 0, action 0 (0F0): only a forward and the backward of "
            "another microbatch right after it can run together");
}

TEST(Schedule, NamesWhatIsMissing) {
  Schedule schedule = one_f_one_b(2, 2);
  schedule.ranks[1].pop_back();
  EXPECT_EQ(error_of(schedule), "schedule, rank 1, action 3 (the end): 1B1 is missing");
  schedule.ranks[1].pop_back();
  EXPECT_EQ(error_of(schedule), "schedule, rank 1, action 2 (the end): 1F1 is missing");
  EXPECT_EQ(error_of({{1}, 1, {{}}}),
            "schedule, rank 0, action 0 (the end): stage 0 is on rank 1 of 1");
}

TEST(Schedule, FindsRanksThatWaitForEachOther) {
  Schedule schedule = one_f_one_b(2, 2);
  std::swap(schedule.ranks[0][0], schedule.ranks[0][1]);
  EXPECT_EQ(error_of(schedule), "");  // rank 1 only waits a little longer
  // Rank 1 begins with microbatch 1, which rank 0 begins only after backward of 0.
  schedule = {
      {0, 1},
      2,
      {{{kForward, 0, 0}, {kBackward, 0, 0}, {kForward, 0, 1}, {kBackward, 0, 1}},
       {{kForward, 1, 1}, {kBackward, 1, 1}, {kForward, 1, 0}, {kBackward, 1, 0}}}};
  EXPECT_EQ(error_of(schedule),
            "schedule, rank 0, action 1 (0B0): waits for ever for 1B0 of rank 1, which "
            "itself waits for this rank");
}

TEST(Schedule, APairStartsWhenBothCan) {
  // In turn these would run; together 0F1 waits for 1B0, which waits for 1F1.
  Schedule schedule{
      {0, 1},
      2,
      {{{kForward, 0, 0}, {kForward, 0, 1}, {kBackward, 0, 0}, {kBackward, 0, 1}},
       {{kForward, 1, 0}, {kForward, 1, 1}, {kBackward, 1, 0}, {kBackward, 1, 1}}}};
  EXPECT_EQ(error_of(schedule), "");
  schedule.ranks[0][1].overlaps_next = true;
  EXPECT_EQ(error_of(schedule),
            "schedule, rank 0, action 2 (0B0): waits for ever for 1B0 of rank 1, which "
            "itself waits for this rank");
}

TEST(Schedule, ForwardOnlyHasNoBackward) {
  EXPECT_EQ(error_of(one_f_one_b(1, 1), ProgramKind::kForwardOnly),
            "schedule, rank 0, action 1 (0B0): is not a forward");
}

}  // namespace
}  // namespace torchtitan::plan::schedules
