#include "plan/schedules/csv.h"

#include <gtest/gtest.h>

#include "plan/schedules/dual_pipe_v.h"
#include "plan/schedules/one_f_one_b.h"

namespace torchtitan::plan::schedules {
namespace {

TEST(Csv, ReadsWhatItPrints) {
  for (const Schedule& schedule : {one_f_one_b(3, 4), dual_pipe_v(3, 8)}) {
    EXPECT_EQ(parse_csv(to_csv(schedule)), schedule);
  }
}

TEST(Csv, EmptyCellsAndLineEndsOnlyAlign) {
  EXPECT_EQ(parse_csv("0F0 , 0F1,,,0B0,0B1,\r\n,1F0,1F1, 1B0,1B1\r\n\r\n"),
            parse_csv("0F0,0F1,0B0,0B1\n1F0,1F1,1B0,1B1"));
}

std::string csv_error(std::string_view text) {
  try {
    parse_csv(text);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(Csv, ErrorsNameRowAndColumn) {
  const std::string form =
      "expected stage, one of F, B, I and W, and microbatch, such as 2F0, found ";
  EXPECT_EQ(csv_error("0F0,0B0\n1F0,1X0"),
            "schedule CSV, row 2, column 2: " + form + "'1X0'");
  EXPECT_EQ(csv_error("0F0,,0SEND_F0,0B0"),
            "schedule CSV, row 1, column 3: " + form + "'0SEND_F0'");
  EXPECT_EQ(csv_error("F0"), "schedule CSV, row 1, column 1: " + form + "'F0'");
  EXPECT_EQ(csv_error("0F"), "schedule CSV, row 1, column 1: " + form + "'0F'");
  EXPECT_EQ(csv_error("0"), "schedule CSV, row 1, column 1: " + form + "'0'");
  EXPECT_EQ(csv_error("0F0x"), "schedule CSV, row 1, column 1: " + form + "'0F0x'");
  EXPECT_EQ(csv_error("0F99999999999999999999"),
            "schedule CSV, row 1, column 1: " + form + "'0F99999999999999999999'");
  EXPECT_EQ(csv_error("0F100000"),
            "schedule CSV, row 1, column 1: expected numbers up to 99999, found "
            "'0F100000'");
  EXPECT_EQ(csv_error("0F0,(0F1;0B0)"),
            "schedule CSV, row 1, column 2: expected (2F1;5B0)OVERLAP_F_B, found "
            "'(0F1;0B0)'");
  EXPECT_EQ(csv_error("(0F1;0B0"),
            "schedule CSV, row 1, column 1: expected (2F1;5B0)OVERLAP_F_B, found "
            "'(0F1;0B0'");
  EXPECT_EQ(csv_error(""), "schedule CSV: there is no row");
  EXPECT_EQ(csv_error("0F0,0B0\n,,\n1F0,1B0"),
            "schedule CSV, row 2, column 1: the rank of this row has nothing to do");
  EXPECT_EQ(csv_error("0F0,0B0\n2F0,2B0"), "schedule CSV: stage 1 of 3 is in no row");
}

TEST(Csv, ErrorsOfTheScheduleNameTheCell) {
  EXPECT_EQ(csv_error("0F0,,,0F0,0B0"),
            "schedule CSV, row 1, column 4: 0F0: comes twice");
  EXPECT_EQ(csv_error("0F0,0B0\n1F0,,"),
            "schedule CSV, row 2, column 4: 1B0 is missing");
  EXPECT_EQ(csv_error("0F0,0B0\n1F0,1B0,0F0"),
            "schedule CSV, row 2, column 3: 0F0: stage 0 is on rank 0");
  EXPECT_EQ(csv_error("0F0,(0F1;0B0)OVERLAP_F_B,0B1\n1F0,1F1,1B0,1B1"),
            "schedule CSV, row 1, column 2: 0B0: waits for ever for 1B0 of rank 1, "
            "which itself waits for this rank");
}

}  // namespace
}  // namespace torchtitan::plan::schedules
