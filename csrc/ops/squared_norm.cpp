#include "ops/squared_norm.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>
#include <vector>

namespace torchtitan::ops {
namespace {

constexpr int64_t kBlock = 1 << 15;  // elements that are added up in one go
constexpr int64_t kLanes = 8;        // independent sums, so that they fill vectors

template <class T>
double sum_of_squares(const T* x, int64_t count) {
  double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = static_cast<double>(x[i + lane]);
      sums[lane] += value * value;
    }
  }
  double sum = 0;
  for (; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (const double lane : sums) sum += lane;
  return sum;
}

}  // namespace

at::Tensor squared_norm(const at::Tensor& x) {
  const auto options = x.options().dtype(at::kDouble);
  if (x.is_meta()) return at::empty({}, options);
  if (!x.is_cpu()) return at::linalg_vector_norm(x, 2, {}, false, at::kDouble).square();
  const auto flat = x.contiguous();
  const int64_t numel = flat.numel();
  std::vector<double> sums(static_cast<size_t>((numel + kBlock - 1) / kBlock));
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "squared_norm", [&] {
    const auto* data = flat.const_data_ptr<scalar_t>();
    const auto blocks = static_cast<int64_t>(sums.size());
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        sums[static_cast<size_t>(b)] =
            sum_of_squares(data + b * kBlock, std::min(kBlock, numel - b * kBlock));
      }
    });
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return at::scalar_tensor(total, options);
}

}  // namespace torchtitan::ops
