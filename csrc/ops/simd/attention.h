// Causal attention in blocks with a running maximum (Dao et al. 2022): scores exist
// only for kQueries x kKeys at a time. Keys are transposed once per head, so that each
// score vector holds neighbouring keys and small head dims still fill the vectors.
#pragma once

#include "ops/simd/kernels.h"
#include "ops/simd/vector.h"

namespace torchtitan::ops::simd {

inline constexpr int64_t kQueries =
    32;  // divides kKeys: no row of a block is all masked
inline constexpr int64_t kKeys = 64;

// X is the type in memory, T that of the arithmetic and of the scratch.
template <class Isa, class X>
struct Attention {
  using T = Wide<X>;
  using S = Simd<Isa, T>;
  using V = typename S::V;

  static int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
  static int64_t padded_tokens(const AttentionShape& s) { return up(s.tokens, kKeys); }
  static int64_t padded_dim(const AttentionShape& s) {
    return up(s.head_dim, S::width);
  }

  // to [padded tokens, padded dim] = from * factor, the rest zero
  static void pack(const AttentionShape& s, const X* from, int64_t stride, T factor,
                   T* to) {
    const int64_t dim = padded_dim(s);
    for (int64_t t = 0; t < padded_tokens(s); ++t) {
      for (int64_t d = 0; d < dim; ++d) {
        const bool inside = t < s.tokens && d < s.head_dim;
        to[t * dim + d] = inside ? from[t * stride + d] * factor : T(0);
      }
    }
  }

  // to [padded tokens / kKeys, head dim, kKeys] = from transposed, the rest zero. One
  // block after another: rows as long as the sequence would fall into the same cache
  // set.
  static void pack_transposed(const AttentionShape& s, const X* from, T* to) {
    for (int64_t t = 0; t < padded_tokens(s); ++t) {
      T* const block = to + t / kKeys * kKeys * s.head_dim + t % kKeys;
      for (int64_t d = 0; d < s.head_dim; ++d) {
        block[d * kKeys] = t < s.tokens ? T(from[t * s.key_stride + d]) : T(0);
      }
    }
  }

  static void unpack(const AttentionShape& s, const T* from, T factor, X* to,
                     int64_t stride) {
    const int64_t dim = padded_dim(s);
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t d = 0; d < s.head_dim; ++d)
        to[t * stride + d] = from[t * dim + d] * factor;
    }
  }

  static void mask(T* scores, int64_t first_query, int64_t first_key) {
    if (first_key + kKeys <= first_query + 1) return;
    for (int64_t r = 0; r < kQueries; ++r) {
      for (int64_t j = 0; j < kKeys; ++j) {
        if (first_key + j > first_query + r) scores[r * kKeys + j] = -__builtin_inff();
      }
    }
  }

  static int64_t forward_scratch(const AttentionShape& s) {
    const int64_t dim = padded_dim(s);
    return padded_tokens(s) * (s.head_dim + 2 * dim) + kQueries * (dim + kKeys);
  }

  static void forward(const AttentionShape& s, const X* q, const X* k, const X* v, X* o,
                      T* lse, T* scratch) {
    const int64_t tokens = padded_tokens(s);
    const int64_t dim = padded_dim(s);
    T* const queries = scratch;
    T* const keys = queries + tokens * dim;  // transposed
    T* const values = keys + tokens * s.head_dim;
    T* const sums = values + tokens * dim;
    T* const scores = sums + kQueries * dim;
    pack(s, q, s.query_stride, static_cast<T>(s.scale), queries);
    pack_transposed(s, k, keys);
    pack(s, v, s.key_stride, T(1), values);
    for (int64_t first = 0; first < s.tokens; first += kQueries) {
      T most[kQueries];
      T weight[kQueries];
      for (int64_t r = 0; r < kQueries; ++r) {
        most[r] = -__builtin_inff();
        weight[r] = 0;
      }
      for (int64_t i = 0; i < kQueries * dim; ++i) sums[i] = 0;
      for (int64_t key = 0; key < first + kQueries; key += kKeys) {
        product<Isa, T, false>(kQueries, kKeys, s.head_dim, queries + first * dim, dim,
                               1, keys + key * s.head_dim, kKeys, scores, kKeys);
        mask(scores, first, key);
        for (int64_t r = 0; r < kQueries; ++r) {
          soften(scores + r * kKeys, sums + r * dim, dim, &most[r], &weight[r]);
        }
        product<Isa, T, true>(kQueries, dim, kKeys, scores, kKeys, 1,
                              values + key * dim, dim, sums, dim);
      }
      for (int64_t r = 0; r < kQueries && first + r < s.tokens; ++r) {
        lse[first + r] = most[r] + static_cast<T>(__builtin_log(weight[r]));
        const T inverse = 1 / weight[r];
        X* const out = o + (first + r) * s.query_stride;
        for (int64_t d = 0; d < s.head_dim; ++d) out[d] = sums[r * dim + d] * inverse;
      }
    }
  }

  // Scores of a row become exp(score - maximum so far); what was summed before is
  // scaled to the new maximum.
  static void soften(T* row, T* sum, int64_t dim, T* most, T* weight) {
    V largest = S::load(row);
    for (int64_t j = S::width; j < kKeys; j += S::width) {
      largest = S::max(largest, S::load(row + j));
    }
    const T here = S::max(largest);
    const T before = *most;
    if (here > before) {
      *most = here;
      const T scale = static_cast<T>(__builtin_exp(before - here));
      *weight *= scale;
      for (int64_t d = 0; d < dim; d += S::width)
        S::store(sum + d, S::load(sum + d) * scale);
    }
    V total = {};
    for (int64_t j = 0; j < kKeys; j += S::width) {
      const V e = S::exp(S::load(row + j) - *most);
      S::store(row + j, e);
      total += e;
    }
    *weight += S::sum(total);
  }

  static int64_t backward_scratch(const AttentionShape& s) {
    const int64_t dim = padded_dim(s);
    return padded_tokens(s) * (2 * s.head_dim + 6 * dim + 2) + 2 * kQueries * kKeys;
  }

  static void backward(const AttentionShape& s, int64_t heads, const X* q, const X* k,
                       const X* v, const X* o, const T* lse, const X* d_o, X* dq, X* dk,
                       X* dv, T* scratch) {
    const int64_t tokens = padded_tokens(s);
    const int64_t dim = padded_dim(s);
    T* const keys = scratch;
    T* const keys_across = keys + tokens * dim;  // transposed
    T* const values_across = keys_across + tokens * s.head_dim;
    T* const d_keys = values_across + tokens * s.head_dim;
    T* const d_values = d_keys + tokens * dim;
    T* const queries = d_values + tokens * dim;
    T* const d_outs = queries + tokens * dim;
    T* const d_queries = d_outs + tokens * dim;
    T* const shift = d_queries + tokens * dim;  // lse, padded
    T* const delta = shift + tokens;            // sum of o * d_o
    T* const p = delta + tokens;
    T* const dp = p + kQueries * kKeys;
    pack(s, k, s.key_stride, T(1), keys);
    pack_transposed(s, k, keys_across);
    pack_transposed(s, v, values_across);
    for (int64_t i = 0; i < tokens * dim; ++i) d_keys[i] = d_values[i] = 0;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t at = h * s.head_dim;
      pack(s, q + at, s.query_stride, static_cast<T>(s.scale), queries);
      pack(s, d_o + at, s.query_stride, T(1), d_outs);
      for (int64_t i = 0; i < tokens * dim; ++i) d_queries[i] = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        shift[t] = t < s.tokens ? lse[h * s.tokens + t] : T(0);
        delta[t] = 0;
        for (int64_t d = 0; t < s.tokens && d < s.head_dim; ++d) {
          delta[t] += o[at + t * s.query_stride + d] * d_o[at + t * s.query_stride + d];
        }
      }
      for (int64_t key = 0; key < s.tokens; key += kKeys) {
        for (int64_t first = key; first < s.tokens; first += kQueries) {
          const T* const q_block = queries + first * dim;
          const T* const d_block = d_outs + first * dim;
          product<Isa, T, false>(kQueries, kKeys, s.head_dim, q_block, dim, 1,
                                 keys_across + key * s.head_dim, kKeys, p, kKeys);
          product<Isa, T, false>(kQueries, kKeys, s.head_dim, d_block, dim, 1,
                                 values_across + key * s.head_dim, kKeys, dp, kKeys);
          mask(p, first, key);
          for (int64_t r = 0; r < kQueries; ++r) {
            for (int64_t j = r * kKeys; j < (r + 1) * kKeys; j += S::width) {
              const V e = S::exp(S::load(p + j) - shift[first + r]);
              S::store(p + j, e);
              S::store(dp + j, e * (S::load(dp + j) - delta[first + r]));
            }
          }
          product<Isa, T, true>(kKeys, dim, kQueries, p, 1, kKeys, d_block, dim,
                                d_values + key * dim, dim);
          product<Isa, T, true>(kKeys, dim, kQueries, dp, 1, kKeys, q_block, dim,
                                d_keys + key * dim, dim);
          product<Isa, T, true>(kQueries, dim, kKeys, dp, kKeys, 1, keys + key * dim,
                                dim, d_queries + first * dim, dim);
        }
      }
      unpack(s, d_queries, static_cast<T>(s.scale), dq + at, s.query_stride);
    }
    unpack(s, d_keys, T(1), dk, s.key_stride);
    unpack(s, d_values, T(1), dv, s.key_stride);
  }
};

}  // namespace torchtitan::ops::simd
