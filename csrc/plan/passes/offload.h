// What segments keep for their backward waits for it in host memory (ZeRO-Offload, Ren
// et al. 2021, for activations; Rhu et al. 2016, vDNN).
#pragma once

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan::passes {

// For each Forward of a segment that is to be offloaded: Offload right after it, its
// Wait after `depth` more compute actions; Reload `depth` compute actions before the
// one that needs it (its Recompute, Backward or BackwardInput), its Wait right before
// that. Where that would leave no compute action between the first Wait and the Reload,
// nothing is inserted: what is needed so soon stays on the device. What BackwardInput
// leaves for BackwardWeight does too.
// Only adds actions, so it may come after passes that look at neighbours. depth >= 0.
Program offload(const Program& program, const StepShape& shape, int64_t depth);

}  // namespace torchtitan::plan::passes
