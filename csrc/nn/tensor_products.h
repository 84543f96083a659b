// Products at the borders of a tensor axis, each with the exchange that it needs
// (nn/tensor_axis.h). Weights are this rank's pieces.
#pragma once

#include "nn/tensor_axis.h"

namespace torchtitan::nn {

// Not seen by autograd; tensors are contiguous, outputs overwritten unless added to.

// y_i [N, O_i] = gather(x [n, E]) w_i [O_i, E]^T: column parallel. `outputs` are
// given. Returns the gathered x.
at::Tensor gathered_products_(const TensorList& outputs, const at::Tensor& x,
                              const TensorList& weights, const TensorAxis& axis);
// Its gradient of x [n, E], from those of the outputs.
Pending gathered_products_backward(const TensorList& output_gradients,
                                   const TensorList& weights, const TensorAxis& axis);

// This rank's tokens of the sum over the ranks of x [N, I] w [O, I]^T: row parallel.
at::Tensor product_sum(const at::Tensor& x, const at::Tensor& w,
                       const TensorAxis& axis);
// y [n, O] += product_sum(x, w).
void add_product_sum_(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w,
                      const TensorAxis& axis);
// Its gradient of x into dx [N, I], from dy [n, O]. Returns the gathered dy.
at::Tensor product_sum_backward_(const at::Tensor& dx, const at::Tensor& dy,
                                 const at::Tensor& w, const TensorAxis& axis);

// For autograd: x [B, s, E] -> [B, S, O_i] for each weight; x [B, S, I] -> [B, s, O].
// x is gathered again in backward, while the sums of its gradient travel.
TensorList gathered_linear(const at::Tensor& x, const TensorList& weights,
                           const TensorAxis& axis);
at::Tensor linear_sum(const at::Tensor& x, const at::Tensor& w, const TensorAxis& axis);

}  // namespace torchtitan::nn
