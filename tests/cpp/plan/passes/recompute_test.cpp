#include "plan/passes/recompute.h"

#include <gtest/gtest.h>

#include "plan/schedules/sequential.h"
#include "plan/shapes.h"

namespace torchtitan::plan::passes {
namespace {

TEST(Recompute, RunsAFlaggedForwardAgainJustBeforeItsBackward) {
  StepShape shape = chain(2, 1, 1, 1);
  shape.segments[0].recompute = true;
  EXPECT_EQ(one_line(recompute(schedules::sequential(shape), shape)),
            "Forward s0 mb0; Forward s1 mb0; Backward s1 mb0; Recompute s0 mb0; "
            "Backward s0 mb0");
}

}  // namespace
}  // namespace torchtitan::plan::passes
