#include "plan/schedules/sequential.h"

#include <gtest/gtest.h>

#include "plan/shapes.h"

namespace torchtitan::plan::schedules {
namespace {

TEST(Sequential, RunsEachMicrobatchForwardThenBackward) {
  EXPECT_EQ(one_line(sequential(chain(2, 1, 1, 2))),
            "Forward s0 mb0; Forward s1 mb0; Backward s1 mb0; Backward s0 mb0; "
            "Forward s0 mb1; Forward s1 mb1; Backward s1 mb1; Backward s0 mb1");
}

TEST(Sequential, ForwardOnlyLeavesOutTheBackwards) {
  EXPECT_EQ(one_line(sequential_forward(chain(2, 1, 1, 2))),
            "Forward s0 mb0; Forward s1 mb0; Forward s0 mb1; Forward s1 mb1");
}

}  // namespace
}  // namespace torchtitan::plan::schedules
