// Data parallelism as actions: when parameters are gathered and freed, when gradients
// are summed (ZeRO, Rajbhandari et al. 2020; the rules are those of PyTorch's FSDP2).
#pragma once

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan::passes {

// `program` holds compute actions and messages. Around the former, without any overlap:
// * A group with shards > 1 is gathered (Unshard, Wait) just before a use and freed
//   (Reshard) just after it, unless it is kept for its next use (GroupShape::
//   reshard_after_forward). It is freed after its last use in any case.
// * Its gradient is summed over the shards (ReduceGradient, Wait) after the last
//   contribution of each microbatch: several segments may use the group. Where it is
//   kept for the whole step (kAfterStep), after the last of the step.
// * A trainable group with replicas > 1 is summed over them (AllReduceGradient, Wait)
//   once, when the gradient of the last microbatch is otherwise complete.
Program shard(const Program& program, const StepShape& shape);

}  // namespace torchtitan::plan::passes
