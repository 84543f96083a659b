// SwiGLU gate (Shazeer 2020): silu(gate) * up, elementwise, shapes and dtypes equal.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::ops {

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

}  // namespace torchtitan::ops
