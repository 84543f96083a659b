// Products of a linear layer y = x w^T without autograd, into memory that is given.
//   x [N, I], w [O, I], y and dy [N, O]: one dtype and device; rows may be strided.
// float32 on a CPU goes to oneDNN where the loaded torch offers it and the product is
// large enough to pay for the call; everything else to ATen. On meta
// nothing happens.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::ops {

enum class Into {
  kOverwrite,
  kAdd,
};

// y = x w^T, or y += x w^T.
void linear_(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w, Into into);

// dx = dy w, or dx += dy w.
void linear_backward_input_(const at::Tensor& dx, const at::Tensor& dy,
                            const at::Tensor& w, Into into);

// dw += dy^T x; dw [O, I] may have another floating-point dtype than the operands (a
// float32 buffer of bfloat16 products, each rounded to bfloat16 once).
void linear_backward_weight_(const at::Tensor& dw, const at::Tensor& dy,
                             const at::Tensor& x);

}  // namespace torchtitan::ops
