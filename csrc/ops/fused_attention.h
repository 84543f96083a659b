// Attention on a CPU, a block of keys at a time, with the rules of ops/fused.h. B
// batch, S queries, K keys of the block, H query heads, G key heads (H divisible by G,
// head h attends to key head h / (H / G)), D head dim; scores are scaled by 1 /
// sqrt(D).
//
// Where tokens stand is given, not assumed: a query sees the keys that are not after it
// and, with document starts, not before the one given for it. Blocks of scores that no
// query sees cost nothing.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::ops::fused {

struct QueryPlaces {
  at::Tensor positions;        // [S] int64
  at::Tensor document_starts;  // [B, tokens of a whole sequence] int64, or undefined
};

// The part of a block in a sum over blocks of keys.
enum class Part { kOnly, kFirst, kMiddle, kLast };

// q [B, S, H, D]; k, v [B, K, G, D] at key_positions [K] int64; lse [B, H, S], wide.
// The output so far is in `sum` [B, S, H, D], wide, that of the only or the last block
// in o, which may be `sum` where dtypes agree; what a part does not name is not read.
void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const QueryPlaces& queries, const at::Tensor& key_positions, Part part,
               const at::Tensor& sum, const at::Tensor& o, const at::Tensor& lse);

// [B, H, S], wide: the sum of o * d_o over a head, [B, S, H, D] both.
at::Tensor attention_delta(const at::Tensor& o, const at::Tensor& d_o);

struct AttentionGradient {
  at::Tensor q, k, v;
};
// Through one block of keys, from lse and delta over all blocks. Overwrites `gradient`,
// whose members may be d_o (or q), k and v.
void attention_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const QueryPlaces& queries, const at::Tensor& key_positions,
                        const at::Tensor& lse, const at::Tensor& delta,
                        const at::Tensor& d_o, const AttentionGradient& gradient);
// The same, added to wide sums.
void add_attention_backward(const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const QueryPlaces& queries,
                            const at::Tensor& key_positions, const at::Tensor& lse,
                            const at::Tensor& delta, const at::Tensor& d_o,
                            const AttentionGradient& sums);

// How many blocks of scores one head computes, over all rows of the batch.
int64_t attention_blocks(const QueryPlaces& queries, const at::Tensor& key_positions);

}  // namespace torchtitan::ops::fused
