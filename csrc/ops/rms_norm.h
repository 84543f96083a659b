// Root mean square normalisation over the last dim (Zhang and Sennrich 2019).
//   x       [..., D] floating point
//   weight  [D], same dtype as x
//   returns x / sqrt(mean(x^2) + eps) * weight, shape and dtype of x
// The statistics are float32, or float64 for a float64 x.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::ops {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

}  // namespace torchtitan::ops
