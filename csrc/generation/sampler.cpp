#include "generation/sampler.h"

#include <ATen/ops/max.h>
#include <ATen/ops/topk.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

namespace torchtitan::generation {
namespace {

std::string name_of(const std::vector<int64_t>& prompt, int64_t copy) {
  std::string name = "generation " + std::to_string(copy) + ":";
  for (const int64_t token : prompt) name.append(" ").append(std::to_string(token));
  return name;
}

// The first class at which the running sum of weights exceeds `share` of the whole.
int64_t pick(const double* weights, int64_t count, double share) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += weights[i];
  const double target = share * total;
  double sum = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += weights[i];
    if (weights[i] > 0) last = i;
    if (sum > target) return i;
  }
  return last;  // the product was rounded up to the whole
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options, uint64_t seed,
                 const std::vector<std::vector<int64_t>>& prompts)
    : options_(options) {
  TORCH_CHECK_VALUE(std::isfinite(options.temperature) && options.temperature >= 0,
                    "temperature: expected a finite number >= 0, found ",
                    options.temperature);
  TORCH_CHECK_VALUE(!options.top_k || *options.top_k >= 1,
                    "top_k: expected at least 1, found ", *options.top_k);
  std::map<std::vector<int64_t>, int64_t> seen;
  for (const auto& prompt : prompts) {
    streams_.emplace_back(seed, name_of(prompt, seen[prompt]++));
  }
}

std::vector<int64_t> Sampler::choose(const at::Tensor& logits,
                                     const std::vector<int64_t>& rows,
                                     int64_t index) const {
  TORCH_CHECK_VALUE(
      logits.dim() == 2 && logits.size(0) == static_cast<int64_t>(rows.size()),
      "choose: expected logits [", rows.size(), ", vocabulary], got ", logits.sizes());
  const auto wide = logits.to(at::kDouble);
  const auto [largest, place] = at::max(wide, -1, /*keepdim=*/true);
  const auto most = largest.cpu(), chosen = place.cpu();
  std::vector<int64_t> tokens;
  for (int64_t r = 0; r < logits.size(0); ++r) {
    TORCH_CHECK_VALUE(std::isfinite(most.const_data_ptr<double>()[r]),
                      "the logits of row ", rows[static_cast<size_t>(r)],
                      " are not finite: the largest is ",
                      most.const_data_ptr<double>()[r]);
    tokens.push_back(chosen.const_data_ptr<int64_t>()[r]);
  }
  if (options_.temperature == 0) return tokens;

  auto weights = wide.sub(largest).div_(options_.temperature).exp_();
  if (options_.top_k && *options_.top_k < wide.size(1)) {
    const auto kth = std::get<0>(at::topk(wide, *options_.top_k, -1))
                         .narrow(-1, *options_.top_k - 1, 1);
    weights.masked_fill_(wide.lt(kth), 0.0);
  }
  weights = weights.cpu().contiguous();
  const int64_t count = weights.size(1);
  for (int64_t r = 0; r < weights.size(0); ++r) {
    const auto row = static_cast<size_t>(rows[static_cast<size_t>(r)]);
    const double share = streams_.at(row).uniform_pair(static_cast<uint64_t>(index))[0];
    tokens[static_cast<size_t>(r)] =
        pick(weights.const_data_ptr<double>() + r * count, count, share);
  }
  return tokens;
}

}  // namespace torchtitan::generation
