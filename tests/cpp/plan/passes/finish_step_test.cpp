#include "plan/passes/finish_step.h"

#include <gtest/gtest.h>

#include "plan/passes/shard.h"
#include "plan/schedules/sequential.h"
#include "plan/shapes.h"

namespace torchtitan::plan::passes {
namespace {

std::string finished(const StepShape& shape, OptimizerTiming timing) {
  return one_line(
      finish_step(shard(schedules::sequential(shape), shape), shape, timing));
}

TEST(FinishStep, CountsTokensBeforeTheFirstBackwardAndClipsBeforeTheOptimizer) {
  EXPECT_EQ(finished(chain(1, 1, 1, 2), OptimizerTiming::kAtEnd),
            "CountTokens; Forward s0 mb0; Wait CountTokens; Backward s0 mb0; "
            "Forward s0 mb1; Backward s0 mb1; ClipGradient; OptimizerStep");
}

TEST(FinishStep, EarlyStepsFollowTheLastReductionOfTheirGroup) {
  StepShape shape = chain(4, 1, 1, 1);
  shape.groups[1].shards = 2;
  shape.groups[2].replicas = 2;
  shape.groups[3].trainable = false;
  EXPECT_EQ(finished(shape, OptimizerTiming::kAtLastGradient),
            "CountTokens; Forward s0 mb0; Unshard g1; Wait Unshard g1; Forward s1 mb0; "
            "Reshard g1; Forward s2 mb0; Forward s3 mb0; Wait CountTokens; "
            "Backward s3 mb0; "
            "Backward s2 mb0; AllReduceGradient g2; Wait AllReduceGradient g2; "
            "OptimizerStep g2; "
            "Unshard g1; Wait Unshard g1; Backward s1 mb0; Reshard g1; "
            "ReduceGradient g1; Wait ReduceGradient g1; OptimizerStep g1; "
            "Backward s0 mb0; OptimizerStep g0; ClipGradient");
}

}  // namespace
}  // namespace torchtitan::plan::passes
