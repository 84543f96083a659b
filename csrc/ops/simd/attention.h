// Attention in blocks with a running maximum (Dao et al. 2022): scores exist only for
// kQueries x kKeys at a time, and blocks that no query sees are left out. Keys are
// transposed once per head, so that each score vector holds neighbouring keys and small
// head dims still fill the vectors.
#pragma once

#include "ops/simd/kernels.h"
#include "ops/simd/vector.h"

namespace torchtitan::ops::simd {

// X is the type in memory, T that of the arithmetic and of the scratch.
template <class Isa, class X>
struct Attention {
  using T = Wide<X>;
  using S = Simd<Isa, T>;
  using V = typename S::V;

  static constexpr T kNothing = -__builtin_inff();  // the log-sum-exp of no scores

  static int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
  static int64_t padded_dim(const AttentionShape& s) {
    return up(s.head_dim, S::width);
  }
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  // to [padded, padded dim] = from [rows, head dim] * factor, the rest zero
  static void pack(const AttentionShape& s, int64_t rows, int64_t padded, const X* from,
                   int64_t stride, T factor, T* to) {
    const int64_t dim = padded_dim(s);
    for (int64_t t = 0; t < padded; ++t) {
      for (int64_t d = 0; d < dim; ++d) {
        const bool inside = t < rows && d < s.head_dim;
        to[t * dim + d] = inside ? from[t * stride + d] * factor : T(0);
      }
    }
  }

  // to [blocks of keys, head dim, kKeys] = from transposed, the rest zero. One block
  // after another: rows as long as the sequence would fall into the same cache set.
  static void pack_transposed(const AttentionShape& s, const X* from, T* to) {
    for (int64_t t = 0; t < up(s.keys, kKeys); ++t) {
      T* const block = to + t / kKeys * kKeys * s.head_dim + t % kKeys;
      for (int64_t d = 0; d < s.head_dim; ++d) {
        block[d * kKeys] = t < s.keys ? T(from[t * s.key_stride + d]) : T(0);
      }
    }
  }

  // from [rows, padded dim] * factor, to `to` or added to `sum`
  static void unpack(const AttentionShape& s, int64_t rows, const T* from, T factor,
                     X* to, T* sum, int64_t stride) {
    const int64_t dim = padded_dim(s);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t d = 0; d < s.head_dim; ++d) {
        const T value = from[t * dim + d] * factor;
        if (sum != nullptr) {
          sum[t * stride + d] += value;
        } else {
          to[t * stride + d] = value;
        }
      }
    }
  }

  struct Range {
    int32_t least, most;
  };
  static Range range(const int32_t* values, int64_t count) {
    Range found = {values[0], values[0]};
    for (int64_t i = 1; i < count; ++i) {
      found.least = values[i] < found.least ? values[i] : found.least;
      found.most = values[i] > found.most ? values[i] : found.most;
    }
    return found;
  }

  // What a block of queries sees of a block of keys.
  enum class Seen { kNothing, kSome, kAll };
  struct Queries {
    Range first, last;
    Queries(const AttentionBounds& b, int64_t from)
        : first(range(b.first + from, kQueries)), last(range(b.last + from, kQueries)) {
    }
    Seen seen(Range key) const {
      if (key.least > last.most || key.most < first.least) return Seen::kNothing;
      const bool all = key.most <= last.least && key.least >= first.most;
      return all ? Seen::kAll : Seen::kSome;
    }
  };

  static void mask(T* scores, const AttentionBounds& b, int64_t query, int64_t key) {
    for (int64_t r = 0; r < kQueries; ++r) {
      const int32_t first = b.first[query + r], last = b.last[query + r];
      for (int64_t j = 0; j < kKeys; ++j) {
        const int32_t position = b.key[key + j];
        if (position < first || position > last) scores[r * kKeys + j] = kNothing;
      }
    }
  }

  static int64_t blocks(const AttentionShape& s, const AttentionBounds& b) {
    int64_t count = 0;
    for (int64_t first = 0; first < s.queries; first += kQueries) {
      const Queries here(b, first);
      for (int64_t key = 0; key < s.keys; key += kKeys) {
        count += here.seen(range(b.key + key, kKeys)) != Seen::kNothing;
      }
    }
    return count;
  }

  static int64_t forward_scratch(const AttentionShape& s) {
    const int64_t dim = padded_dim(s);
    return up(s.keys, kKeys) * (s.head_dim + dim) + kQueries * (2 * dim + kKeys);
  }

  static void forward(const AttentionShape& s, const AttentionBounds& b, const X* q,
                      const X* k, const X* v, T* sum, bool continues, X* o, T* lse,
                      T* scratch) {
    const int64_t keys = up(s.keys, kKeys);
    const int64_t dim = padded_dim(s);
    T* const keys_across = scratch;  // transposed
    T* const values = keys_across + keys * s.head_dim;
    T* const queries = values + keys * dim;
    T* const sums = queries + kQueries * dim;
    T* const scores = sums + kQueries * dim;
    pack_transposed(s, k, keys_across);
    pack(s, s.keys, keys, v, s.key_stride, T(1), values);
    for (int64_t first = 0; first < s.queries; first += kQueries) {
      const int64_t rows = least(kQueries, s.queries - first);
      pack(s, rows, kQueries, q + first * s.query_stride, s.query_stride,
           static_cast<T>(s.scale), queries);
      T most[kQueries];
      T weight[kQueries];
      for (int64_t i = 0; i < kQueries * dim; ++i) sums[i] = 0;
      for (int64_t r = 0; r < kQueries; ++r) {
        most[r] = continues && r < rows ? lse[first + r] : kNothing;
        weight[r] = most[r] == kNothing ? T(0) : T(1);
        if (!continues || r >= rows) continue;
        const T* const before = sum + (first + r) * s.query_stride;
        for (int64_t d = 0; d < s.head_dim; ++d) sums[r * dim + d] = before[d];
      }
      const Queries here(b, first);
      for (int64_t key = 0; key < s.keys; key += kKeys) {
        const Seen seen = here.seen(range(b.key + key, kKeys));
        if (seen == Seen::kNothing) continue;
        product<Isa, T, false>(kQueries, kKeys, s.head_dim, queries, dim, 1,
                               keys_across + key * s.head_dim, kKeys, scores, kKeys);
        if (seen == Seen::kSome) mask(scores, b, first, key);
        for (int64_t r = 0; r < kQueries; ++r) {
          soften(scores + r * kKeys, sums + r * dim, dim, &most[r], &weight[r]);
        }
        product<Isa, T, true>(kQueries, dim, kKeys, scores, kKeys, 1,
                              values + key * dim, dim, sums, dim);
      }
      for (int64_t r = 0; r < rows; ++r) {
        lse[first + r] = most[r] + static_cast<T>(__builtin_log(weight[r]));
        const T inverse = weight[r] == 0 ? T(0) : 1 / weight[r];
        const int64_t at = (first + r) * s.query_stride;
        for (int64_t d = 0; d < s.head_dim; ++d) {
          const T value = sums[r * dim + d] * inverse;
          if (o != nullptr) {
            o[at + d] = value;
          } else {
            sum[at + d] = value;
          }
        }
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
    const T shift = *most == kNothing ? T(0) : *most;  // no score yet
    V total = {};
    for (int64_t j = 0; j < kKeys; j += S::width) {
      const V e = S::exp(S::load(row + j) - shift);
      S::store(row + j, e);
      total += e;
    }
    *weight += S::sum(total);
  }

  // Adds up in memory, one product after another as product() does: with one visible
  // key, dp - delta is then 0 and not a rounding error.
  static void delta(const AttentionShape& s, const X* o, const X* d_o, T* to) {
    for (int64_t t = 0; t < s.queries; ++t) {
      to[t] = 0;
      for (int64_t d = 0; d < s.head_dim; ++d) {
        to[t] += o[t * s.query_stride + d] * d_o[t * s.query_stride + d];
      }
    }
  }

  static int64_t backward_scratch(const AttentionShape& s) {
    const int64_t dim = padded_dim(s);
    return up(s.keys, kKeys) * (2 * s.head_dim + 3 * dim) +
           up(s.queries, kQueries) * (3 * dim + 2) + 2 * kQueries * kKeys;
  }

  static void backward(const AttentionShape& s, const AttentionBounds& b, int64_t heads,
                       const X* q, const X* k, const X* v, const T* lse, const T* delta,
                       const X* d_o, const AttentionGradients<X>& gradients,
                       const AttentionGradients<T>& sums, T* scratch) {
    const int64_t rows = up(s.queries, kQueries), tokens = up(s.keys, kKeys);
    const int64_t dim = padded_dim(s);
    T* const keys = scratch;
    T* const keys_across = keys + tokens * dim;  // transposed
    T* const values_across = keys_across + tokens * s.head_dim;
    T* const d_keys = values_across + tokens * s.head_dim;
    T* const d_values = d_keys + tokens * dim;
    T* const queries = d_values + tokens * dim;
    T* const d_outs = queries + rows * dim;
    T* const d_queries = d_outs + rows * dim;
    T* const shift = d_queries + rows * dim;  // lse, padded
    T* const drop = shift + rows;             // delta, padded
    T* const p = drop + rows;
    T* const dp = p + kQueries * kKeys;
    pack(s, s.keys, tokens, k, s.key_stride, T(1), keys);
    pack_transposed(s, k, keys_across);
    pack_transposed(s, v, values_across);
    for (int64_t i = 0; i < tokens * dim; ++i) d_keys[i] = d_values[i] = 0;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t at = h * s.head_dim;
      pack(s, s.queries, rows, q + at, s.query_stride, static_cast<T>(s.scale),
           queries);
      pack(s, s.queries, rows, d_o + at, s.query_stride, T(1), d_outs);
      for (int64_t i = 0; i < rows * dim; ++i) d_queries[i] = 0;
      for (int64_t t = 0; t < rows; ++t) {
        const T found = t < s.queries ? lse[h * s.queries + t] : T(0);
        shift[t] = found == kNothing ? T(0) : found;
        drop[t] = t < s.queries ? delta[h * s.queries + t] : T(0);
      }
      for (int64_t key = 0; key < s.keys; key += kKeys) {
        const Range positions = range(b.key + key, kKeys);
        for (int64_t first = 0; first < s.queries; first += kQueries) {
          const Seen seen = Queries(b, first).seen(positions);
          if (seen == Seen::kNothing) continue;
          const T* const q_block = queries + first * dim;
          const T* const d_block = d_outs + first * dim;
          product<Isa, T, false>(kQueries, kKeys, s.head_dim, q_block, dim, 1,
                                 keys_across + key * s.head_dim, kKeys, p, kKeys);
          product<Isa, T, false>(kQueries, kKeys, s.head_dim, d_block, dim, 1,
                                 values_across + key * s.head_dim, kKeys, dp, kKeys);
          if (seen == Seen::kSome) mask(p, b, first, key);
          for (int64_t r = 0; r < kQueries; ++r) {
            for (int64_t j = r * kKeys; j < (r + 1) * kKeys; j += S::width) {
              const V e = S::exp(S::load(p + j) - shift[first + r]);
              S::store(p + j, e);
              S::store(dp + j, e * (S::load(dp + j) - drop[first + r]));
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
      unpack(s, s.queries, d_queries, static_cast<T>(s.scale),
             at_or_null(gradients.q, at), at_or_null(sums.q, at), s.query_stride);
    }
    unpack(s, s.keys, d_keys, T(1), gradients.k, sums.k, s.key_stride);
    unpack(s, s.keys, d_values, T(1), gradients.v, sums.v, s.key_stride);
  }

  template <class Number>
  static Number* at_or_null(Number* start, int64_t offset) {
    return start == nullptr ? nullptr : start + offset;
  }
};

}  // namespace torchtitan::ops::simd
