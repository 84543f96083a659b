#include "plan/passes/step_program.h"

#include "plan/passes/expand_stages.h"
#include "plan/passes/offload.h"
#include "plan/passes/prefetch.h"
#include "plan/passes/recompute.h"
#include "plan/passes/shard.h"
#include "plan/schedules/sequential.h"

namespace torchtitan::plan::passes {

namespace {

Program finish(Program program, const StepShape& shape, const StepOptions& options) {
  program = recompute(program, shape);
  program = shard(program, shape);
  program = prefetch(program, options.prefetch_depth);
  program = delay_reductions(program, shape, options.reduce_depth);
  program = offload(program, shape, options.offload_depth);
  return finish_step(program, shape, options.optimizer);
}

}  // namespace

Program build_step_program(const StepShape& shape, const StepOptions& options) {
  check(shape);
  return finish(schedules::sequential(shape), shape, options);
}

Program build_step_program(const Program& program, const StepShape& shape,
                           const StepOptions& options) {
  check(shape);
  return finish(expand_stages(program, shape), shape, options);
}

Program build_forward_program(const StepShape& shape, int64_t prefetch_depth) {
  check(shape);
  return prefetch(shard(schedules::sequential_forward(shape), shape), prefetch_depth);
}

Program build_forward_program(const Program& program, const StepShape& shape,
                              int64_t prefetch_depth) {
  check(shape);
  return prefetch(shard(expand_stages(program, shape), shape), prefetch_depth);
}

Program repeat(const Program& program, int64_t num_microbatches, int64_t rounds) {
  Program result;
  for (int64_t round = 0; round < rounds; ++round) {
    for (Action action : program) {
      if (action.microbatch >= 0) action.microbatch += round * num_microbatches;
      result.push_back(action);
    }
  }
  return result;
}

}  // namespace torchtitan::plan::passes
