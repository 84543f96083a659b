#include "plan/program.h"

#include <gtest/gtest.h>

namespace torchtitan::plan {
namespace {

TEST(Program, PrintsOneActionPerLine) {
  const Action gather{.kind = ActionKind::kUnshard, .group = 0};
  const Program program{
      gather,
      wait_for(gather),
      {.kind = ActionKind::kForward, .segment = 0, .microbatch = 1},
      {.kind = ActionKind::kReshard, .group = 0},
  };
  EXPECT_EQ(to_string(program),
            "Unshard g0\nWait Unshard g0\nForward s0 mb1\nReshard g0\n");
  EXPECT_EQ(to_string(Program{}), "");
}

}  // namespace
}  // namespace torchtitan::plan
