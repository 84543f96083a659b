// From the work of stages to that of their segments.
#pragma once

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan::passes {

// `program` is this rank's of a pipeline: compute actions of stages, and messages,
// which stay as they are. A stage's Forward becomes that of its segments, first to
// last; its backward or a half of it that of its segments, last to first. Of a pair
// that overlaps (Action::overlaps_next) the segments of both take turns. Throws
// std::invalid_argument for a stage that the shape does not have.
Program expand_stages(const Program& program, const StepShape& shape);

}  // namespace torchtitan::plan::passes
