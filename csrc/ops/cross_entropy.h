// Sum of next-token cross-entropy over the tokens whose label is not kIgnoreIndex.
//   logits  [..., V] floating point
//   labels  [...] int64 in [0, V) or kIgnoreIndex
//   returns scalar, float32 (float64 for float64 logits); 0 when all labels are ignored
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::ops {

inline constexpr int64_t kIgnoreIndex = -100;

at::Tensor cross_entropy_sum(const at::Tensor& logits, const at::Tensor& labels);

}  // namespace torchtitan::ops
