// Initial values of parameters: each element is a function of (seed, parameter name,
// global element index), so every layout starts from the same weights.
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/parameter.h"

namespace torchtitan::nn {

// Fills `rows` [R, ...], which are rows [first_row, first_row + R) of the parameter.
// Numbers are drawn in float32 and cast to the dtype of `rows`. No effect on meta.
void fill_initial(const at::Tensor& rows, const ParameterSpec& parameter,
                  int64_t first_row, uint64_t seed);

}  // namespace torchtitan::nn
