#include "plan/passes/step_program.h"

#include <gtest/gtest.h>

#include "plan/memory_model.h"
#include "plan/shapes.h"
#include "plan/simulate.h"

namespace torchtitan::plan::passes {
namespace {

TEST(StepProgram, ComposesAllPasses) {
  StepShape shape = chain(3, 2, 1, 1);
  shape.segments[1].recompute = true;
  const Program program =
      build_step_program(shape, {.prefetch_depth = 1,
                                 .reduce_depth = 1,
                                 .offload_depth = 1,
                                 .optimizer = OptimizerTiming::kAtEnd});
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

TEST(StepProgram, LeavesNoMemoryBehindWhateverTheLayout) {
  for (const Reshard reshard : {Reshard::kAlways, Reshard::kDefault, Reshard::kNever}) {
    for (const int64_t depth : {0, 1, 3}) {
      StepShape shape = chain(4, 2, 2, 2, reshard);
      shape.segments[1].recompute = true;
      shape.segments[3].recompute = true;
      shape.segments[3].groups = {3, 0};
      shape.groups[2].shards = 1;
      const Program program =
          build_step_program(shape, {.prefetch_depth = depth,
                                     .reduce_depth = depth,
                                     .offload_depth = depth,
                                     .optimizer = OptimizerTiming::kAtLastGradient});
      const MemoryEstimate estimate = estimate_memory(program, shape);
      EXPECT_EQ(estimate.after, estimate.before) << to_string(program);
      const Program forward = build_forward_program(shape, depth);
      EXPECT_EQ(estimate_memory(forward, shape).after, estimate.before);
    }
  }
}

TEST(StepProgram, OverlapCostsMemoryAndSavesTime) {
  const StepShape shape = chain(6, 4, 1, 1);
  const CostModel cost{.flops_per_second = 100.0,
                       .memory_bytes_per_second = 1e6,
                       .links = {{"fsdp", {100.0, 0.0}}}};
  const auto run = [&](int64_t depth) {
    return build_step_program(shape, {.prefetch_depth = depth,
                                      .reduce_depth = depth,
                                      .offload_depth = depth,
                                      .optimizer = OptimizerTiming::kAtEnd});
  };
  const Simulation serial = simulate(run(0), shape, cost);
  const Simulation overlapped = simulate(run(1), shape, cost);
  EXPECT_LT(overlapped.seconds, 0.8 * serial.seconds);
  EXPECT_DOUBLE_EQ(overlapped.compute_seconds, serial.compute_seconds);
  EXPECT_GT(estimate_memory(run(1), shape).peak.total(),
            estimate_memory(run(0), shape).peak.total());
}

TEST(StepProgram, RefusesShapesAndDepthsThatMakeNoStep) {
  const StepOptions options{.prefetch_depth = 1,
                            .reduce_depth = 1,
                            .offload_depth = 1,
                            .optimizer = OptimizerTiming::kAtEnd};
  EXPECT_THROW(build_step_program(chain(0, 1, 1, 1), options), std::invalid_argument);
  EXPECT_THROW(build_forward_program(chain(1, 1, 1, 0), 1), std::invalid_argument);
  EXPECT_THROW(build_forward_program(chain(1, 1, 1, 1), -1), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::plan::passes
