// Inner loops of the CPU operators, compiled once per instruction set and chosen when
// the program runs. They know no tensors: rows are contiguous, memory is the caller's,
// and the caller spreads rows or heads over threads. T, the type in memory, is float,
// double or BFloat16. All arithmetic is in Wide<T> except sums that say otherwise, and
// each result is rounded to T once, when it is stored.
#pragma once

#include <cstdint>
#include <vector>

namespace torchtitan::ops::simd {

// A number in memory only: the upper half of a float. Inlined everywhere, because a
// copy of these functions that the linker keeps could be of any instruction set.
struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  // Rounds to nearest, ties to even; a NaN stays one.
  [[gnu::always_inline]] BFloat16(float x) {  // NOLINT: converts as float does
    const auto wide = __builtin_bit_cast(uint32_t, x);
    const uint32_t rounded = wide + 0x7FFFU + ((wide >> 16U) & 1U);
    bits = static_cast<uint16_t>((x == x ? rounded : wide | 0x400000U) >> 16U);
  }
  [[gnu::always_inline]] operator float() const {  // NOLINT: as above
    return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16U);
  }
};

// The type of arithmetic on numbers kept as T.
template <class T>
struct WideOf {
  using type = T;
};
template <>
struct WideOf<BFloat16> {
  using type = float;
};
template <class T>
using Wide = typename WideOf<T>::type;

// One head: element (token, d) lies at token * stride + d.
struct AttentionShape {
  int64_t queries;
  int64_t keys;
  int64_t head_dim;
  int64_t query_stride;  // also of outputs and of both gradients of them
  int64_t key_stride;    // of keys and values and their gradients
  double scale;          // of the scores
};

// Scores exist for this many queries and keys at a time; the keys' a multiple.
inline constexpr int64_t kQueries = 32;
inline constexpr int64_t kKeys = 64;

// A query sees the keys at positions first <= key <= last. Each array is padded to
// whole blocks: queries with last = -1, keys with the largest number.
struct AttentionBounds {
  const int32_t* first;
  const int32_t* last;
  const int32_t* key;
};

template <class T>
struct AttentionGradients {
  T *q, *k, *v;
};

template <class T>
struct Kernels {
  using W = Wide<T>;
  const char* name;  // of the instruction set

  // y = x * rstd * weight, rstd[row] = 1 / sqrt(mean(x^2) + eps). With `residual` not
  // null, x becomes x + residual first.
  void (*rms_norm)(T* x, const T* residual, const T* weight, T* y, W* rstd,
                   int64_t rows, int64_t dim, double eps);
  // y = x * rstd * weight with rstd known.
  void (*rms_norm_again)(const T* x, const T* weight, const W* rstd, T* y, int64_t rows,
                         int64_t dim);
  // dx = gradient of x plus `residual` (null: nothing), where that of y is scale * dy;
  // dweight [dim] is added to. dx may be dy or residual.
  void (*rms_norm_backward)(const T* dy, W scale, const T* x, const T* weight,
                            const W* rstd, const T* residual, T* dx, W* dweight,
                            int64_t rows, int64_t dim);

  // Rotates the pairs of `heads` heads in each row by sign * angle, in place; row r is
  // at positions[(first_row + r) % seq_len]; cos and sin are [.., head_dim / 2].
  void (*rope)(T* x, const W* cos, const W* sin, W sign, const int64_t* positions,
               int64_t first_row, int64_t rows, int64_t seq_len, int64_t heads,
               int64_t head_dim);

  // out = silu(gate) * up.
  void (*swiglu)(const T* gate, const T* up, T* out, int64_t count);
  // From d = gradient of the output: d becomes the output, gate and up their gradients.
  void (*swiglu_backward)(T* d, T* gate, T* up, int64_t count);

  // Sum of -log softmax(logits)[label] over rows whose label is not `ignored`, in
  // double. With `keep_gradient` the logits become the gradient of that sum.
  double (*cross_entropy)(T* logits, const int64_t* labels, int64_t ignored,
                          int64_t rows, int64_t classes, bool keep_gradient);

  // Attention of one query head to a block of the keys. With `continues`, (sum, lse)
  // are the output and log-sum-exp over earlier blocks, and become those over all so
  // far; where `o` is given, the output goes there instead of into sum, which is then
  // read only. A query that has seen nothing has output 0 and lse -infinity.
  int64_t (*attention_scratch)(const AttentionShape& shape);  // elements of W
  void (*attention)(const AttentionShape& shape, const AttentionBounds& bounds,
                    const T* q, const T* k, const T* v, W* sum, bool continues, T* o,
                    W* lse, W* scratch);
  // delta[token] = sum of o * d_o.
  void (*attention_delta)(const AttentionShape& shape, const T* o, const T* d_o,
                          W* delta);
  // Of all `heads` query heads of one key head, through one block of the keys; head h
  // lies head_dim * h further, its lse and delta `queries` * h further. lse and delta
  // are those over all blocks. Gradients are added to `sums`, or, if its members are
  // null, overwrite `gradients`.
  int64_t (*attention_backward_scratch)(const AttentionShape& shape);
  void (*attention_backward)(const AttentionShape& shape, const AttentionBounds& bounds,
                             int64_t heads, const T* q, const T* k, const T* v,
                             const W* lse, const W* delta, const T* d_o,
                             const AttentionGradients<T>& gradients,
                             const AttentionGradients<W>& sums, W* scratch);
  // How many blocks of scores a forward computes.
  int64_t (*attention_blocks)(const AttentionShape& shape,
                              const AttentionBounds& bounds);
};

// Those that this CPU can run, best first. Never empty.
template <class T>
std::vector<const Kernels<T>*> supported();

template <class T>
const Kernels<T>& best() {
  static const Kernels<T>& chosen = *supported<T>().front();
  return chosen;
}

// Whether this CPU multiplies matrices of bfloat16 by instructions of its own.
bool multiplies_bfloat16();

// One per instruction set; call only what the CPU has.
template <class T>
const Kernels<T>& baseline();
template <class T>
const Kernels<T>& avx2();
template <class T>
const Kernels<T>& avx512();

}  // namespace torchtitan::ops::simd
