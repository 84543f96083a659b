// Random numbers for a box of a tensor that never has to exist as a whole: element i of
// the row-major global tensor is drawn from blocks of PhiloxStream(seed, name) that
// depend on i alone, so every sharding sees the same global tensor.
//
// Elements 2k and 2k + 1 share block k. All arithmetic is in double and rounded to
// float once. Each function fills `out` with the box in row-major order, throws
// std::invalid_argument for a box outside the tensor, a span of another size or
// parameters without a distribution, and is safe to call from many threads.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace torchtitan::base {

// Where the numbers come from: one tensor of one run.
struct RandomTensor {
  uint64_t seed;
  std::string_view name;
  std::span<const int64_t> global_shape;
};

// The elements offset[d] <= index[d] < offset[d] + size[d] of it, d over all dims.
struct RandomBox {
  std::span<const int64_t> offset;
  std::span<const int64_t> size;
};

// Uniform between low and high (both may occur after rounding); low <= high.
void fill_uniform(std::span<float> out, const RandomTensor& tensor,
                  const RandomBox& box, double low, double high);

// Normal by the Box-Muller transform of the block's pair; standard_deviation >= 0.
void fill_normal(std::span<float> out, const RandomTensor& tensor, const RandomBox& box,
                 double mean, double standard_deviation);

struct TruncatedNormal {
  double mean;
  double standard_deviation;  // of the normal before truncation, > 0
  double low;                 // cutoffs in units of the value, not of the deviation
  double high;
};

// Normal conditioned on [low, high], by the inverse of its distribution function: one
// draw per element, none rejected. Both ends are respected after rounding to float as
// far as the rounded cutoffs themselves. Throws if [low, high] has no probability.
void fill_truncated_normal(std::span<float> out, const RandomTensor& tensor,
                           const RandomBox& box, const TruncatedNormal& distribution);

}  // namespace torchtitan::base
