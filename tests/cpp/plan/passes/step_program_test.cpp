#include "plan/passes/step_program.h"

#include <gtest/gtest.h>

#include "plan/shapes.h"

namespace torchtitan::plan::passes {
namespace {

TEST(StepProgram, ComposesAllPasses) {
  StepShape shape = chain(3, 2, 1, 1);
  shape.segments[1].recompute = true;
  const Program program = build_step_program(
      shape,
      {.prefetch_depth = 1, .reduce_depth = 1, .optimizer = OptimizerTiming::kAtEnd});
  EXPECT_EQ(one_line(program),
            "CountTokens; Unshard g0; Wait Unshard g0; Unshard g1; Forward s0 mb0; "
            "Reshard g0; Wait Unshard g1; Unshard g2; Forward s1 mb0; Reshard g1; "
            "Wait Unshard g2; Forward s2 mb0; Unshard g1; Wait CountTokens; "
            "Backward s2 mb0; Reshard g2; ReduceGradient g2; Wait Unshard g1; "
            "Recompute s1 mb0; Wait ReduceGradient g2; Unshard g0; Backward s1 mb0; "
            "Reshard g1; ReduceGradient g1; Wait Unshard g0; Backward s0 mb0; "
            "Wait ReduceGradient g1; Reshard g0; ReduceGradient g0; "
            "Wait ReduceGradient g0; ClipGradient; OptimizerStep");
}

TEST(StepProgram, ForwardProgramGathersAndFreesOnly) {
  EXPECT_EQ(one_line(build_forward_program(chain(2, 2, 2, 1), 1)),
            "Unshard g0; Wait Unshard g0; Unshard g1; Forward s0 mb0; Reshard g0; "
            "Wait Unshard g1; Forward s1 mb0; Reshard g1");
}

TEST(StepProgram, RefusesShapesAndDepthsThatMakeNoStep) {
  const StepOptions options{
      .prefetch_depth = 1, .reduce_depth = 1, .optimizer = OptimizerTiming::kAtEnd};
  EXPECT_THROW(build_step_program(chain(0, 1, 1, 1), options), std::invalid_argument);
  EXPECT_THROW(build_forward_program(chain(1, 1, 1, 0), 1), std::invalid_argument);
  EXPECT_THROW(build_forward_program(chain(1, 1, 1, 1), -1), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::plan::passes
