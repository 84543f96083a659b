#include "ops/rope.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/stack.h>

#include <cmath>
#include <numbers>

namespace torchtitan::ops {
namespace {

double scaled_frequency(double frequency, const RopeScaling& scaling) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double context = static_cast<double>(scaling.original_context);
  if (wavelength < context / scaling.high_freq_factor) return frequency;
  if (wavelength > context / scaling.low_freq_factor) return frequency / scaling.factor;
  const double smooth = (context / wavelength - scaling.low_freq_factor) /
                        (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

}  // namespace

RopeTable rope_table(int64_t positions, int64_t head_dim, double theta,
                     const std::optional<RopeScaling>& scaling,
                     const at::TensorOptions& options) {
  TORCH_CHECK_VALUE(head_dim > 0 && head_dim % 2 == 0,
                    "rope_table: head_dim must be even and positive, got ", head_dim);
  if (options.device().is_meta()) {
    const auto empty = [&] { return at::empty({positions, head_dim / 2}, options); };
    return {empty(), empty()};  // two, as what they stand for
  }
  auto frequencies = at::empty({head_dim / 2}, at::kDouble);
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double exponent = static_cast<double>(2 * i) / static_cast<double>(head_dim);
    const double frequency = std::pow(theta, -exponent);
    frequencies.mutable_data_ptr<double>()[i] =
        scaling ? scaled_frequency(frequency, *scaling) : frequency;
  }
  const auto angles = at::outer(at::arange(positions, at::kDouble), frequencies);
  return {at::cos(angles).to(options), at::sin(angles).to(options)};
}

void check_rope(const at::Tensor& x, const RopeTable& table,
                const at::Tensor& positions) {
  TORCH_CHECK_VALUE(x.dim() == 4 && x.size(1) <= table.cos.size(0) &&
                        x.size(3) == 2 * table.cos.size(1),
                    "rope: x must be [B, S <= ", table.cos.size(0), ", H, ",
                    2 * table.cos.size(1), "], got shape ", x.sizes());
  TORCH_CHECK_VALUE(positions.dim() == 1 && positions.size(0) == x.size(1) &&
                        positions.scalar_type() == at::kLong,
                    "rope: positions must be int64 [", x.size(1), "], got ",
                    positions.scalar_type(), " ", positions.sizes());
}

at::Tensor apply_rope(const at::Tensor& x, const RopeTable& table,
                      const at::Tensor& positions) {
  check_rope(x, table, positions);
  const auto cos = table.cos.index_select(0, positions).unsqueeze(1);  // [S, 1, D / 2]
  const auto sin = table.sin.index_select(0, positions).unsqueeze(1);
  const auto pairs = x.to(cos.scalar_type()).unflatten(-1, {-1, 2});
  const auto even = pairs.select(-1, 0);
  const auto odd = pairs.select(-1, 1);
  const auto rotated =
      at::stack({even.mul(cos).sub(odd.mul(sin)), even.mul(sin).add(odd.mul(cos))}, -1);
  return rotated.flatten(-2).to(x.scalar_type());
}

}  // namespace torchtitan::ops
