// From the shape of a model to the program that trains it: the passes in their order.
#pragma once

#include "plan/passes/finish_step.h"
#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan::passes {

struct StepOptions {
  int64_t prefetch_depth;  // compute actions that a gather may start ahead of its use
  int64_t reduce_depth;    // compute actions that may run during a gradient's reduction
  int64_t offload_depth;   // compute actions that may run during a copy to or from host
  OptimizerTiming optimizer;
};

// One training step of a rank that holds the whole model or a shard of it:
//   sequential schedule -> recompute -> shard -> prefetch -> delay_reductions ->
//   offload -> finish_step
// Throws std::invalid_argument for a shape that check() refuses or a negative depth.
Program build_step_program(const StepShape& shape, const StepOptions& options);

// The same of a rank of a pipeline:
//   expand_stages -> recompute -> shard -> prefetch -> delay_reductions -> offload ->
//   finish_step
//   program  of this rank's stages, with messages (passes/transfers.h)
Program build_step_program(const Program& program, const StepShape& shape,
                           const StepOptions& options);

// Forward of every microbatch without anything kept: validation. Groups are gathered
// `prefetch_depth` compute actions ahead and freed after their use.
Program build_forward_program(const StepShape& shape, int64_t prefetch_depth);
// The same of a rank of a pipeline, whose program has forwards and messages only.
Program build_forward_program(const Program& program, const StepShape& shape,
                              int64_t prefetch_depth);

// A program that runs `rounds` times, each with microbatches of its own.
Program repeat(const Program& program, int64_t num_microbatches, int64_t rounds);

}  // namespace torchtitan::plan::passes
