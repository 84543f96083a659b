// Causal multi-head attention with grouped key and value heads (Ainslie et al. 2023).
//   q        [B, S, H, D]
//   k, v     [B, S, G, D], H divisible by G; query head h attends to kv head
//            h / (H / G)
//   returns  [B, S, H, D]
// Scores are scaled by 1 / sqrt(D). On meta: shapes, and the tensors that the fused
// kernels keep for backward.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::ops {

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v);

}  // namespace torchtitan::ops
