// The schedules of a model that lies whole on each rank (no pipeline): one microbatch
// after the other.
#pragma once

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan::schedules {

// For each microbatch: Forward of segments first to last, Backward last to first.
Program sequential(const StepShape& shape);

// For each microbatch: Forward of segments first to last (validation, inference).
Program sequential_forward(const StepShape& shape);

}  // namespace torchtitan::plan::schedules
