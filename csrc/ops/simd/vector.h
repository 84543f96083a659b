// Vectors of one instruction set and the product of small blocks that everything is
// made of. Included only by the sources that are compiled for an instruction set; `Isa`
// in each name keeps their instantiations apart, so that the linker merges none of
// them. No standard library here: its inline functions would be merged.
#pragma once

#include "ops/simd/kernels.h"

namespace torchtitan::ops::simd {

template <class T, int64_t bytes>
struct Vector {
  typedef T type __attribute__((vector_size(bytes)));
};

template <class Isa, class T>
struct Simd {
  static constexpr int64_t width = Isa::bytes / static_cast<int64_t>(sizeof(T));
  using V = typename Vector<T, Isa::bytes>::type;
  using I = typename Vector<int32_t, Isa::bytes>::type;

  static V load(const T* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof(V));
    return v;
  }
  static void store(T* p, V v) { __builtin_memcpy(p, &v, sizeof(V)); }

  // The same of numbers kept in bfloat16, for float.
  using Bits = typename Vector<uint32_t, Isa::bytes>::type;
  using Halves = typename Vector<uint16_t, 2 * width>::type;
  static V load(const BFloat16* p) {
    Halves halves;
    __builtin_memcpy(&halves, p, sizeof(Halves));
    return reinterpret_cast<V>(__builtin_convertvector(halves, Bits) << 16U);
  }
  static void store(BFloat16* p, V v) {
    const Bits wide = reinterpret_cast<Bits>(v);
    const Bits rounded = wide + 0x7FFFU + ((wide >> 16U) & 1U);
    const Bits bits = (v == v ? rounded : wide | 0x400000U) >> 16U;
    const Halves halves = __builtin_convertvector(bits, Halves);
    __builtin_memcpy(p, &halves, sizeof(Halves));
  }

  static V all(T x) { return x - V{}; }
  static T sum(V v) {
    T total = 0;
    for (int64_t i = 0; i < width; ++i) total += v[i];
    return total;
  }
  static V max(V a, V b) { return a > b ? a : b; }
  static T max(V v) {
    T most = v[0];
    for (int64_t i = 1; i < width; ++i) most = v[i] > most ? v[i] : most;
    return most;
  }

  // Two units in the last place for float; below -87 it is 0. NaN stays NaN.
  static V exp(V x) {
    if constexpr (sizeof(T) == 8) {
      for (int64_t i = 0; i < width; ++i) x[i] = __builtin_exp(x[i]);
      return x;
    } else {
      const V low = all(T(-87.0));
      const V high = all(T(88.5));
      const V magic = all(T(12582912));  // 1.5 * 2^23: adding it rounds to an integer
      const V clamped = x > high ? high : (x < low ? low : x);
      const V shifted = clamped * T(1.44269504088896341) + magic;
      const V n = shifted - magic;
      const V f = clamped - n * T(0.693359375) - n * T(-2.12194440e-4);
      V p = all(T(1.9875691500e-4));
      p = p * f + T(1.3981999507e-3);
      p = p * f + T(8.3334519073e-3);
      p = p * f + T(4.1665795894e-2);
      p = p * f + T(1.6666665459e-1);
      p = p * f + T(5.0000001201e-1);
      p = p * f * f + f + T(1);
      // 2^n by adding n to the exponent; n lies in the low bits of `shifted`.
      const V result = reinterpret_cast<V>(reinterpret_cast<I>(p) +
                                           (reinterpret_cast<I>(shifted) << 23));
      return x < low ? V{} : result;
    }
  }
};

// C [M, N] = (Accumulate: +) A B; A(m, k) at m * a_row + k * a_column, B [K, N] and C
// with row strides. M divisible by 8, N by the vector width.
template <class Isa, class T, int64_t kRows, int64_t kVectors, bool kAccumulate>
inline void product_tile(int64_t depth, const T* a, int64_t a_row, int64_t a_column,
                         const T* b, int64_t b_row, T* c, int64_t c_row) {
  using S = Simd<Isa, T>;
  typename S::V sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int64_t n = 0; n < kVectors; ++n) {
      sum[r][n] = kAccumulate ? S::load(c + r * c_row + n * S::width) : typename S::V{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    typename S::V line[kVectors];
#pragma GCC unroll 2
    for (int64_t n = 0; n < kVectors; ++n)
      line[n] = S::load(b + k * b_row + n * S::width);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kRows; ++r) {
      const T factor = a[r * a_row + k * a_column];
#pragma GCC unroll 2
      for (int64_t n = 0; n < kVectors; ++n) sum[r][n] += factor * line[n];
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int64_t n = 0; n < kVectors; ++n) {
      S::store(c + r * c_row + n * S::width, sum[r][n]);
    }
  }
}

template <class Isa, class T, bool kAccumulate>
inline void product(int64_t rows, int64_t columns, int64_t depth, const T* a,
                    int64_t a_row, int64_t a_column, const T* b, int64_t b_row, T* c,
                    int64_t c_row) {
  constexpr int64_t width = Simd<Isa, T>::width;
  int64_t n = 0;
  for (; n + 2 * width <= columns; n += 2 * width) {
    for (int64_t m = 0; m < rows; m += 4) {
      product_tile<Isa, T, 4, 2, kAccumulate>(depth, a + m * a_row, a_row, a_column,
                                              b + n, b_row, c + m * c_row + n, c_row);
    }
  }
  for (; n < columns; n += width) {
    for (int64_t m = 0; m < rows; m += 8) {
      product_tile<Isa, T, 8, 1, kAccumulate>(depth, a + m * a_row, a_row, a_column,
                                              b + n, b_row, c + m * c_row + n, c_row);
    }
  }
}

}  // namespace torchtitan::ops::simd
