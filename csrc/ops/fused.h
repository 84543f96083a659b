// The kernels of ops/simd on tensors, spread over torch's threads: contiguous bfloat16,
// float32 or float64 CPU tensors of one dtype, without autograd. Results do not depend
// on the number of threads; on meta they take the same memory and compute nothing. N
// tokens, E width, H heads, D head dim. Attention is in ops/fused_attention.h.
//
// On bfloat16 the arithmetic is float32: each number that is stored was rounded once,
// and what is summed over a row, a head or the tokens is never rounded in between.
// rstd, lse, rotary tables and the gradients of weights are then float32 tensors
// ("wide").
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/rope.h"

namespace torchtitan::ops::fused {

// Whether the functions below take this tensor's device and dtype.
bool takes(const at::Tensor& x);

// Options of x with the dtype of its wide companions: float32 for bfloat16, else its
// own.
at::TensorOptions wide_options(const at::Tensor& x);

// y [N, E] and rstd [N], wide, from x [N, E]; `residual` (may be undefined) is added to
// x first, and the sum takes its place.
void rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
              double eps, const at::Tensor& y, const at::Tensor& rstd);
// y again, with rstd known.
void rms_norm_again(const at::Tensor& x, const at::Tensor& weight,
                    const at::Tensor& rstd, const at::Tensor& y);
// dx = gradient of x, where that of y is scale * dy, + residual (may be undefined);
// dweight [E], of any floating-point dtype, is added to. dx may be dy or residual.
void rms_norm_backward(const at::Tensor& dy, double scale, const at::Tensor& x,
                       const at::Tensor& weight, const at::Tensor& rstd,
                       const at::Tensor& residual, const at::Tensor& dx,
                       const at::Tensor& dweight);

// dweight [V, E], of any floating-point dtype, is added to at rows ids [...] from
// dy [..., E].
void embedding_backward(const at::Tensor& dy, const at::Tensor& ids,
                        const at::Tensor& dweight);

enum class Turn { kForward, kBackward };
// x [B, S, H, D] with tokens at positions [S], int64, in place, by a wide table;
// kBackward rotates the other way.
void rope_(const at::Tensor& x, const RopeTable& table, const at::Tensor& positions,
           Turn turn);

// out = silu(gate) * up.
void swiglu(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& out);
// d, the gradient of out, becomes out; gate and up become their gradients.
void swiglu_backward_(const at::Tensor& d, const at::Tensor& gate,
                      const at::Tensor& up);

enum class Gradient { kNone, kInPlace };
// Sum over logits [N, V] and labels [N] as in ops/cross_entropy.h, in double. For
// kInPlace the logits become the gradient of the sum.
double cross_entropy_(const at::Tensor& logits, const at::Tensor& labels,
                      Gradient gradient);

}  // namespace torchtitan::ops::fused
