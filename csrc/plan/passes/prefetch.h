// Overlap of communication with compute, made by moving starts and Waits apart.
#pragma once

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan::passes {

// Starts each Unshard `depth` compute actions earlier (forward and backward, across
// microbatches), and before the messages between stages that come directly before
// these: a rank gathers while it waits for its input. Its Wait stays just before the
// use. A gather never moves above the
// Reshard that frees the same group: where the two would meet, both go and the group
// stays gathered. depth >= 0; 0 changes nothing.
Program prefetch(const Program& program, int64_t depth);

// Lets up to `depth` compute actions run between the start of a gradient's reduction
// and its Wait, so that a reduction overlaps with the backward of the segments before.
// What follows from a reduction (the sum over replicas) moves with its Wait; no
// gradient is written while it is under way. depth >= 0; 0 changes nothing.
Program delay_reductions(const Program& program, const StepShape& shape, int64_t depth);

}  // namespace torchtitan::plan::passes
