#include "base/random_fill.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <vector>

#include "base/checked_math.h"
#include "base/normal_quantile.h"
#include "base/philox.h"

namespace torchtitan::base {
namespace {

void check_box(size_t num_out, const RandomTensor& tensor, const RandomBox& box) {
  const size_t rank = tensor.global_shape.size();
  check_value(box.offset.size() == rank && box.size.size() == rank, "random fill of '",
              tensor.name, "': the tensor has ", rank, " dims, the box has ",
              box.offset.size(), " offsets and ", box.size.size(), " sizes");
  for (size_t dim = 0; dim < rank; ++dim) {
    const int64_t offset = box.offset[dim];
    const int64_t size = box.size[dim];
    const int64_t global = tensor.global_shape[dim];
    check_value(offset >= 0 && size >= 0 && offset <= global && size <= global - offset,
                "random fill of '", tensor.name, "': dim ", dim, " has size ", global,
                ", but the box starts at ", offset, " and has size ", size);
  }
  checked_product(tensor.global_shape);
  const int64_t num_elements = checked_product(box.size);
  check_value(static_cast<int64_t>(num_out) == num_elements, "random fill of '",
              tensor.name, "': the box has ", num_elements, " elements, the output ",
              num_out);
}

// Writes elements first ... first + out.size() of the global tensor; `draw` maps the
// index of a block to the values of its two elements.
template <class Draw>
void fill_run(std::span<float> out, int64_t first, const Draw& draw) {
  const int64_t end = first + static_cast<int64_t>(out.size());
  for (int64_t block = first / 2; 2 * block < end; ++block) {
    const std::array<double, 2> values = draw(static_cast<uint64_t>(block));
    const int64_t element = 2 * block;
    if (element >= first) out[element - first] = static_cast<float>(values[0]);
    if (element + 1 < end) out[element + 1 - first] = static_cast<float>(values[1]);
  }
}

// Cuts the box into its longest runs of consecutive global elements.
template <class Draw>
void fill_box(std::span<float> out, const RandomTensor& tensor, const RandomBox& box,
              const Draw& draw) {
  if (out.empty()) return;
  const std::span<const int64_t> shape = tensor.global_shape;
  size_t outer = shape.size();  // dims [outer, rank) lie inside a run
  int64_t run = 1;
  while (outer > 0) {
    --outer;
    run *= box.size[outer];
    if (box.size[outer] != shape[outer]) break;
  }
  std::vector<int64_t> index(box.offset.begin(), box.offset.end());
  for (size_t written = 0; written < out.size(); written += run) {
    int64_t first = 0;
    for (size_t dim = 0; dim < shape.size(); ++dim)
      first = first * shape[dim] + index[dim];
    fill_run(out.subspan(written, run), first, draw);
    for (size_t dim = outer; dim-- > 0;) {
      if (++index[dim] < box.offset[dim] + box.size[dim]) break;
      index[dim] = box.offset[dim];
    }
  }
}

}  // namespace

void fill_uniform(std::span<float> out, const RandomTensor& tensor,
                  const RandomBox& box, double low, double high) {
  check_box(out.size(), tensor, box);
  check_value(std::isfinite(low) && std::isfinite(high) && low <= high,
              "fill_uniform of '", tensor.name, "': expected finite low <= high, got ",
              low, " and ", high);
  const PhiloxStream stream(tensor.seed, tensor.name);
  fill_box(out, tensor, box, [&](uint64_t block) -> std::array<double, 2> {
    const auto [first, second] = stream.uniform_pair(block);
    return {low + (high - low) * first, low + (high - low) * second};
  });
}

void fill_normal(std::span<float> out, const RandomTensor& tensor, const RandomBox& box,
                 double mean, double standard_deviation) {
  check_box(out.size(), tensor, box);
  check_value(std::isfinite(mean) && std::isfinite(standard_deviation) &&
                  standard_deviation >= 0.0,
              "fill_normal of '", tensor.name,
              "': expected a finite mean and standard deviation >= 0, got ", mean,
              " and ", standard_deviation);
  const PhiloxStream stream(tensor.seed, tensor.name);
  fill_box(out, tensor, box, [&](uint64_t block) -> std::array<double, 2> {
    const auto [first, second] = stream.uniform_pair(block);
    const double radius = standard_deviation * std::sqrt(-2.0 * std::log(first));
    const double angle = 2.0 * std::numbers::pi * second;
    return {mean + radius * std::cos(angle), mean + radius * std::sin(angle)};
  });
}

void fill_truncated_normal(std::span<float> out, const RandomTensor& tensor,
                           const RandomBox& box, const TruncatedNormal& distribution) {
  check_box(out.size(), tensor, box);
  // Not a structured binding: clang 14 has no lambda that refers to one.
  const double mean = distribution.mean;
  const double deviation = distribution.standard_deviation;
  const double low = distribution.low, high = distribution.high;
  check_value(
      std::isfinite(mean) && std::isfinite(deviation) && deviation > 0.0 && low < high,
      "fill_truncated_normal of '", tensor.name,
      "': expected a finite mean, standard deviation > 0 and low < high, got mean ",
      mean, ", standard deviation ", deviation, ", low ", low, ", high ", high);
  // Work in the lower tail, where small probabilities are exact: mirror when the whole
  // interval lies above the mean.
  const double sign = low > mean ? -1.0 : 1.0;
  const double from = sign > 0 ? (low - mean) / deviation : (mean - high) / deviation;
  const double to = sign > 0 ? (high - mean) / deviation : (mean - low) / deviation;
  const double start = normal_cdf(from);
  const double width = normal_cdf(to) - start;
  check_value(width > 0.0, "fill_truncated_normal of '", tensor.name, "': [", low, ", ",
              high, "] has no probability under mean ", mean,
              " and standard deviation ", deviation);
  const PhiloxStream stream(tensor.seed, tensor.name);
  const auto value = [&](double uniform) {
    const double probability = std::min(start + width * uniform, 1.0 - 0x1p-53);
    const double x = mean + sign * deviation * normal_quantile(probability);
    return std::clamp(x, low, high);
  };
  fill_box(out, tensor, box, [&](uint64_t block) -> std::array<double, 2> {
    const auto [first, second] = stream.uniform_pair(block);
    return {value(first), value(second)};
  });
}

}  // namespace torchtitan::base
