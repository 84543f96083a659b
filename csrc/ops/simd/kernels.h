// Inner loops of the CPU operators, compiled once per instruction set and chosen when
// the program runs. They know no tensors: rows are contiguous, memory is the caller's,
// and the caller spreads rows or heads over threads. T is float or double, and all
// arithmetic is in T except sums that say otherwise.
#pragma once

#include <cstdint>
#include <vector>

namespace torchtitan::ops::simd {

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
  const char* name;  // of the instruction set

  // y = x * rstd * weight, rstd[row] = 1 / sqrt(mean(x^2) + eps). With `residual` not
  // null, x becomes x + residual first.
  void (*rms_norm)(T* x, const T* residual, const T* weight, T* y, T* rstd,
                   int64_t rows, int64_t dim, double eps);
  // y = x * rstd * weight with rstd known.
  void (*rms_norm_again)(const T* x, const T* weight, const T* rstd, T* y, int64_t rows,
                         int64_t dim);
  // dx = gradient of x plus `residual` (null: nothing); dweight [dim] is added to.
  // dx may be dy or residual.
  void (*rms_norm_backward)(const T* dy, const T* x, const T* weight, const T* rstd,
                            const T* residual, T* dx, T* dweight, int64_t rows,
                            int64_t dim);

  // Rotates the pairs of `heads` heads in each row by sign * angle, in place; row r is
  // position (first_row + r) % seq_len; cos and sin are [positions, head_dim / 2].
  void (*rope)(T* x, const T* cos, const T* sin, T sign, int64_t first_row,
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
  int64_t (*attention_scratch)(const AttentionShape& shape);  // elements of T
  void (*attention)(const AttentionShape& shape, const T* q, const T* k, const T* v,
                    T* o, T* lse, T* scratch);
  // Of all `heads` query heads of one key head; head h lies head_dim * h further, its
  // lse tokens * h further. Gradients are overwritten.
  int64_t (*attention_backward_scratch)(const AttentionShape& shape);
  void (*attention_backward)(const AttentionShape& shape, int64_t heads, const T* q,
                             const T* k, const T* v, const T* o, const T* lse,
                             const T* d_o, T* dq, T* dk, T* dv, T* scratch);
};

// Those that this CPU can run, best first. Never empty.
template <class T>
std::vector<const Kernels<T>*> supported();
template <>
std::vector<const Kernels<float>*> supported<float>();
template <>
std::vector<const Kernels<double>*> supported<double>();

template <class T>
const Kernels<T>& best() {
  static const Kernels<T>& chosen = *supported<T>().front();
  return chosen;
}

// One per instruction set; call only what the CPU has.
const Kernels<float>& baseline_float();
const Kernels<double>& baseline_double();
const Kernels<float>& avx2_float();
const Kernels<double>& avx2_double();
const Kernels<float>& avx512_float();
const Kernels<double>& avx512_double();

}  // namespace torchtitan::ops::simd
