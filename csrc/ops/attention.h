// Multi-head attention with grouped key and value heads (Ainslie et al. 2023), on any
// device.
//   q        [B, S, H, D]
//   k, v     [B, K, G, D], H divisible by G; query head h attends to kv head
//            h / (H / G)
//   visible  bool, broadcast to [B, 1, S, K]: the keys that a query sees
// Scores are scaled by 1 / sqrt(D).
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::ops {

// Differentiable, [B, S, H, D]. `visible` undefined: causal, K = S. On meta: shapes,
// and the tensors that the fused kernels keep for backward.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& visible);

// Bool [B or 1, 1, S, K]: keys that are not after the query and, with starts [B, tokens
// of a whole sequence], not before the one given for its position. Positions are int64
// [S] and [K].
at::Tensor visible_keys(const at::Tensor& query_positions,
                        const at::Tensor& key_positions,
                        const at::Tensor& document_starts);

// Attention to some of the keys: parts over all keys make the whole. Not seen by
// autograd, in float32 or wider; lse and delta are [B, H, S].
struct AttentionPart {
  at::Tensor o;    // [B, S, H, D]; 0 where nothing is visible
  at::Tensor lse;  // log-sum-exp of the scores; -infinity there
};
AttentionPart attention_part(const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const at::Tensor& visible);
AttentionPart merge(const AttentionPart& one, const AttentionPart& other);

// Gradients through some of the keys, from what is known over all: lse, and delta, the
// sum of o * d_o over each head.
struct AttentionPartGradient {
  at::Tensor q, k, v;
};
AttentionPartGradient attention_part_backward(const at::Tensor& q, const at::Tensor& k,
                                              const at::Tensor& v,
                                              const at::Tensor& visible,
                                              const at::Tensor& lse,
                                              const at::Tensor& delta,
                                              const at::Tensor& d_o);

}  // namespace torchtitan::ops
