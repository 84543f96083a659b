// Products of a linear layer y = x w^T without autograd, into memory that is given.
//   x [N, I], w [O, I], y and dy [N, O]: one dtype and device; rows may be strided.
// float32 on a CPU goes to oneDNN where the loaded torch offers it and the product is
// large enough to pay for the call. bfloat16 on a CPU that has no instructions for its
// products is converted, the weight whole and the rows by panels of 2048, and
// multiplied in float32. Everything else goes to ATen. On meta the same memory is
// taken, but for what oneDNN takes for itself during a call, and nothing is computed.
//
// Sums are in the operands' dtype, of bfloat16 in float32: y and dx are rounded once,
// after what was there is added (ATen's native products may round before that).
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

// dw += dy^T x; dw [O, I] may have another floating-point dtype than the operands. Of
// bfloat16 operands a float32 dw gets the float32 sum, except where the CPU multiplies
// bfloat16 by itself: there each product is rounded to bfloat16 before it is added.
void linear_backward_weight_(const at::Tensor& dw, const at::Tensor& dy,
                             const at::Tensor& x);

}  // namespace torchtitan::ops
