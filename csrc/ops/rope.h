// Rotary position embedding on interleaved pairs (Su et al. 2021), with the frequency
// scaling of Llama 3.1: wavelengths longer than the original context are stretched by
// `factor`, those short against it are kept, those between are blended.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace torchtitan::ops {

struct RopeScaling {
  double factor;             // stretch of the long wavelengths
  double low_freq_factor;    // wavelength > original_context / low: stretched whole
  double high_freq_factor;   // wavelength < original_context / high: kept
  int64_t original_context;  // tokens
};

struct RopeTable {
  at::Tensor cos;  // [positions, head_dim / 2]
  at::Tensor sin;  // [positions, head_dim / 2]
};

// Angles position * frequency, computed in float64 and rounded once to
// `options.dtype()`.
RopeTable rope_table(int64_t positions, int64_t head_dim, double theta,
                     const std::optional<RopeScaling>& scaling,
                     const at::TensorOptions& options);

// Rotates each pair (x[2i], x[2i+1]) of the last dim by the angle of its position.
//   x          [B, S, H, D]
//   table      its dtype is that of the arithmetic
//   positions  [S] int64, each a row of the table
//   returns    [B, S, H, D], dtype of x
at::Tensor apply_rope(const at::Tensor& x, const RopeTable& table,
                      const at::Tensor& positions);

// Throws ValueError where shapes or dtypes of these do not fit together.
void check_rope(const at::Tensor& x, const RopeTable& table,
                const at::Tensor& positions);

}  // namespace torchtitan::ops
