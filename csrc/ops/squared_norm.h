// Sum of squares of a buffer, the part of a gradient norm that one rank knows.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::ops {

// x of any shape, float32, float64 or bfloat16. Returns a 0-dim float64 tensor on the
// device of x; squares and sums are float64. On a CPU nothing as large as x is
// allocated, and the order of additions does not depend on the number of threads.
at::Tensor squared_norm(const at::Tensor& x);

}  // namespace torchtitan::ops
