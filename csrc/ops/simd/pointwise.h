// Norm, rotary embedding, SwiGLU and cross-entropy: one pass over memory each.
#pragma once

#include "ops/simd/kernels.h"
#include "ops/simd/vector.h"

namespace torchtitan::ops::simd {

// X is the type in memory, T that of the arithmetic.
template <class Isa, class X>
struct Pointwise {
  using T = Wide<X>;
  using S = Simd<Isa, T>;
  using V = typename S::V;
  static constexpr int64_t W = S::width;

  // Calls body(i) for whole vectors and tail(i) for the elements after them.
  template <class Body, class Tail>
  static void each(int64_t count, const Body& body, const Tail& tail) {
    int64_t i = 0;
    for (; i + W <= count; i += W) body(i);
    for (; i < count; ++i) tail(i);
  }

  static void rms_norm(X* x, const X* residual, const X* weight, X* y, T* rstd,
                       int64_t rows, int64_t dim, double eps) {
    for (int64_t r = 0; r < rows; ++r) {
      X* const row = x + r * dim;
      if (residual != nullptr) {
        const X* const more = residual + r * dim;
        each(
            dim,
            [&](int64_t i) { S::store(row + i, S::load(row + i) + S::load(more + i)); },
            [&](int64_t i) { row[i] = row[i] + more[i]; });
      }
      V squares = {};
      T rest = 0;
      each(
          dim, [&](int64_t i) { squares += S::load(row + i) * S::load(row + i); },
          [&](int64_t i) { rest += row[i] * row[i]; });
      const T mean = (S::sum(squares) + rest) / static_cast<T>(dim);
      rstd[r] = 1 / root(mean + static_cast<T>(eps));
      rms_norm_again(row, weight, rstd + r, y + r * dim, 1, dim);
    }
  }

  static T root(T x) {
    if constexpr (sizeof(T) == 8)
      return __builtin_sqrt(x);
    else
      return __builtin_sqrtf(x);
  }

  static void rms_norm_again(const X* x, const X* weight, const T* rstd, X* y,
                             int64_t rows, int64_t dim) {
    for (int64_t r = 0; r < rows; ++r) {
      const X* const row = x + r * dim;
      X* const out = y + r * dim;
      const T s = rstd[r];
      each(
          dim,
          [&](int64_t i) {
            S::store(out + i, S::load(row + i) * s * S::load(weight + i));
          },
          [&](int64_t i) { out[i] = row[i] * s * weight[i]; });
    }
  }

  static void rms_norm_backward(const X* dy, T scale, const X* x, const X* weight,
                                const T* rstd, const X* residual, X* dx, T* dweight,
                                int64_t rows, int64_t dim) {
    for (int64_t r = 0; r < rows; ++r) {
      const X* const g = dy + r * dim;
      const X* const row = x + r * dim;
      const X* const more = residual == nullptr ? nullptr : residual + r * dim;
      const T s = rstd[r];
      const T gradient_scale = scale * s;
      V products = {};
      T rest = 0;
      each(
          dim,
          [&](int64_t i) {
            const V normed_gradient =
                S::load(g + i) * S::load(row + i) * gradient_scale;
            products += normed_gradient * S::load(weight + i);
            S::store(dweight + i, S::load(dweight + i) + normed_gradient);
          },
          [&](int64_t i) {
            const T normed_gradient = g[i] * row[i] * gradient_scale;
            rest += normed_gradient * weight[i];
            dweight[i] += normed_gradient;
          });
      const T mean = (S::sum(products) + rest) / static_cast<T>(dim);
      const T back = s * s * mean;
      X* const out = dx + r * dim;
      each(
          dim,
          [&](int64_t i) {
            const V add = more == nullptr ? V{} : S::load(more + i);
            S::store(out + i, S::load(g + i) * S::load(weight + i) * gradient_scale -
                                  S::load(row + i) * back + add);
          },
          [&](int64_t i) {
            const T add = more == nullptr ? T(0) : T(more[i]);
            out[i] = g[i] * weight[i] * gradient_scale - row[i] * back + add;
          });
    }
  }

  static void rope(X* x, const T* cos, const T* sin, T sign, const int64_t* positions,
                   int64_t first_row, int64_t rows, int64_t seq_len, int64_t heads,
                   int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = positions[(first_row + r) % seq_len];
      const T* const c = cos + position * half;
      const T* const n = sin + position * half;
      for (int64_t h = 0; h < heads; ++h) {
        X* const pairs = x + (r * heads + h) * head_dim;
        for (int64_t i = 0; i < half; ++i) {
          const T even = pairs[2 * i];
          const T odd = pairs[2 * i + 1];
          pairs[2 * i] = even * c[i] - odd * (sign * n[i]);
          pairs[2 * i + 1] = even * (sign * n[i]) + odd * c[i];
        }
      }
    }
  }

  static T scalar_exp(T x) { return S::exp(S::all(x))[0]; }

  static void swiglu(const X* gate, const X* up, X* out, int64_t count) {
    each(
        count,
        [&](int64_t i) {
          const V g = S::load(gate + i);
          S::store(out + i, g / (T(1) + S::exp(-g)) * S::load(up + i));
        },
        [&](int64_t i) { out[i] = gate[i] / (1 + scalar_exp(-gate[i])) * up[i]; });
  }

  static void swiglu_backward(X* d, X* gate, X* up, int64_t count) {
    each(
        count,
        [&](int64_t i) {
          const V g = S::load(gate + i);
          const V u = S::load(up + i);
          const V gradient = S::load(d + i);
          const V sigmoid = T(1) / (T(1) + S::exp(-g));
          const V silu = g * sigmoid;
          S::store(d + i, silu * u);
          S::store(up + i, gradient * silu);
          S::store(gate + i, gradient * u * (sigmoid + silu * (T(1) - sigmoid)));
        },
        [&](int64_t i) {
          const T g = gate[i], u = up[i], gradient = d[i];
          const T sigmoid = 1 / (1 + scalar_exp(-g));
          const T silu = g * sigmoid;
          d[i] = silu * u;
          up[i] = gradient * silu;
          gate[i] = gradient * u * (sigmoid + silu * (1 - sigmoid));
        });
  }

  static double cross_entropy(X* logits, const int64_t* labels, int64_t ignored,
                              int64_t rows, int64_t classes, bool keep_gradient) {
    double loss = 0;
    for (int64_t r = 0; r < rows; ++r) {
      X* const row = logits + r * classes;
      if (labels[r] == ignored) {
        for (int64_t i = 0; keep_gradient && i < classes; ++i) row[i] = T(0);
        continue;
      }
      const T target = row[labels[r]];
      V largest = S::all(row[0]);
      T most = row[0];
      each(
          classes, [&](int64_t i) { largest = S::max(largest, S::load(row + i)); },
          [&](int64_t i) { most = row[i] > most ? T(row[i]) : most; });
      const T top = S::max(largest);
      most = top > most ? top : most;
      V total = {};
      T rest = 0;
      each(
          classes, [&](int64_t i) { total += S::exp(S::load(row + i) - most); },
          [&](int64_t i) { rest += scalar_exp(row[i] - most); });
      const T sum = S::sum(total) + rest;
      loss +=
          __builtin_log(static_cast<double>(sum)) + static_cast<double>(most - target);
      if (!keep_gradient) continue;
      // The exponentials again: kept in the logits' place they would be rounded twice.
      const T inverse = 1 / sum;
      each(
          classes,
          [&](int64_t i) {
            S::store(row + i, S::exp(S::load(row + i) - most) * inverse);
          },
          [&](int64_t i) { row[i] = scalar_exp(row[i] - most) * inverse; });
      row[labels[r]] = scalar_exp(target - most) * inverse - 1;
    }
    return loss;
  }
};

}  // namespace torchtitan::ops::simd
