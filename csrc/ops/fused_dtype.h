// From a tensor to the pointers and the type that the kernels of ops/simd take.
#pragma once

#include <ATen/core/Tensor.h>

#include <type_traits>

#include "ops/fused.h"
#include "ops/simd/kernels.h"

namespace torchtitan::ops::fused {

template <class T>
struct Of {
  using type = T;
};

// run(Of<T>) with the type of x's elements in memory.
template <class Run>
void with_type(const at::Tensor& x, const Run& run) {
  TORCH_CHECK(takes(x), "fused: expected bfloat16, float32 or float64 on a CPU, got ",
              x.scalar_type(), " on ", x.device());
  if (x.scalar_type() == at::kBFloat16) return run(Of<simd::BFloat16>{});
  if (x.scalar_type() == at::kFloat) return run(Of<float>{});
  run(Of<double>{});
}

// The same for what fills memory: on meta there are shapes only.
template <class Run>
void for_dtype(const at::Tensor& x, const Run& run) {
  with_type(x, [&](auto of) {
    if (!x.is_meta()) run(of);
  });
}

template <class T>
T* data(const at::Tensor& x) {
  TORCH_INTERNAL_ASSERT(x.is_contiguous());
  if constexpr (std::is_same_v<T, simd::BFloat16>) {
    return reinterpret_cast<T*>(x.mutable_data_ptr<at::BFloat16>());
  } else {
    return x.mutable_data_ptr<T>();
  }
}

template <class T>
T* data_or_null(const at::Tensor& x) {
  return x.defined() ? data<T>(x) : nullptr;
}

}  // namespace torchtitan::ops::fused
