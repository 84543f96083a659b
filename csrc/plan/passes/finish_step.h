// What makes a step of forwards and backwards a training step.
#pragma once

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan::passes {

enum class OptimizerTiming {
  kAtEnd,           // ClipGradient, then one OptimizerStep of all groups
  kAtLastGradient,  // each group steps as soon as its gradient is final, unclipped;
                    // ClipGradient at the end only reports the norm
};

// Adds the sums of gradients that stages share, the count of valid tokens, whose Wait
// comes just before the first Backward (it scales the gradient), ClipGradient and the
// optimizer.
Program finish_step(const Program& program, const StepShape& shape,
                    OptimizerTiming timing);

}  // namespace torchtitan::plan::passes
