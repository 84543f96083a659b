// Initial values of parameters: each element is a function of (seed, parameter name,
// global element index), so every layout starts from the same weights.
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/parameter.h"

namespace torchtitan::nn {

// Fills `box`, whose first element is element `offset` (by dim) of the whole parameter.
// Numbers are drawn in float32 and cast to the dtype of `box`. No effect on meta.
void fill_initial(const at::Tensor& box, const ParameterSpec& parameter,
                  at::IntArrayRef offset, uint64_t seed);

}  // namespace torchtitan::nn
