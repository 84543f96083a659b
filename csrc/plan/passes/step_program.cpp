#include "plan/passes/step_program.h"

#include "plan/passes/prefetch.h"
#include "plan/passes/recompute.h"
#include "plan/passes/shard.h"
#include "plan/schedules/sequential.h"

namespace torchtitan::plan::passes {

Program build_step_program(const StepShape& shape, const StepOptions& options) {
  check(shape);
  Program program = schedules::sequential(shape);
  program = recompute(program, shape);
  program = shard(program, shape);
  program = prefetch(program, options.prefetch_depth);
  program = delay_reductions(program, shape, options.reduce_depth);
  return finish_step(program, shape, options.optimizer);
}

Program build_forward_program(const StepShape& shape, int64_t prefetch_depth) {
  check(shape);
  return prefetch(shard(schedules::sequential_forward(shape), shape), prefetch_depth);
}

}  // namespace torchtitan::plan::passes
