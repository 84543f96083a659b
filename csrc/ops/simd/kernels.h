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
  int64_t tokens;
  int64_t head_dim;
  int64_t query_stride;  // also of outputs and of both gradients of them
  int64_t key_stride;    // of keys and values and their gradients
  double scale;          // of the scores
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
  // position (first_row + r) % seq_len; cos and sin are [positions, head_dim / 2].
  void (*rope)(T* x, const W* cos, const W* sin, W sign, int64_t first_row,
               int64_t rows, int64_t seq_len, int64_t heads, int64_t head_dim);

  // out = silu(gate) * up.
  void (*swiglu)(const T* gate, const T* up, T* out, int64_t count);
  // From d = gradient of the output: d becomes the output, gate and up their gradients.
  void (*swiglu_backward)(T* d, T* gate, T* up, int64_t count);

  // Sum of -log softmax(logits)[label] over rows whose label is not `ignored`, in
  // double. With `keep_gradient` the logits become the gradient of that sum.
  double (*cross_entropy)(T* logits, const int64_t* labels, int64_t ignored,
                          int64_t rows, int64_t classes, bool keep_gradient);

  // Causal attention of one query head; lse [tokens] is log-sum-exp of its scores.
  int64_t (*attention_scratch)(const AttentionShape& shape);  // elements of W
  void (*attention)(const AttentionShape& shape, const T* q, const T* k, const T* v,
                    T* o, W* lse, W* scratch);
  // Of all `heads` query heads of one key head; head h lies head_dim * h further, its
  // lse tokens * h further. Gradients are overwritten.
  int64_t (*attention_backward_scratch)(const AttentionShape& shape);
  void (*attention_backward)(const AttentionShape& shape, int64_t heads, const T* q,
                             const T* k, const T* v, const T* o, const W* lse,
                             const T* d_o, T* dq, T* dk, T* dv, W* scratch);
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
