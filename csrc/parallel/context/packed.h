// Keys and values in one tensor, so that they travel together.
#pragma once

#include <ATen/ops/empty.h>

#include "nn/attention_kernel.h"

namespace torchtitan::parallel::context {

// [2, B, s, G, D]
inline at::Tensor packed(const nn::AttentionKernel::Operands& x) {
  auto shape = x.k.sizes().vec();
  shape.insert(shape.begin(), 2);
  const auto kv = at::empty(shape, x.k.options());
  kv.select(0, 0).copy_(x.k);
  kv.select(0, 1).copy_(x.v);
  return kv;
}

// Gradients in the dtype of dq.
inline nn::AttentionKernel::Operands unpacked(const at::Tensor& dq,
                                              const at::Tensor& d_kv) {
  const auto narrow = d_kv.to(dq.scalar_type());
  return {dq, narrow.select(0, 0), narrow.select(0, 1)};
}

inline int64_t packed_numel(const nn::AttentionSizes& sizes) {
  return 2 * sizes.rows * sizes.tokens * sizes.key_width;
}

}  // namespace torchtitan::parallel::context
