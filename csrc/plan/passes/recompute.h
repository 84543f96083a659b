// Activation checkpointing as an action (Chen et al. 2016).
#pragma once

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan::passes {

// A Recompute just before each Backward or BackwardInput of a flagged segment. Comes
// before shard(), which then gathers the parameters for it.
Program recompute(const Program& program, const StepShape& shape);

}  // namespace torchtitan::plan::passes
