// Chooses tokens by their logits, greedily or at random.
//
// Random choices of a sequence depend on the seed, the tokens of its prompt, how many
// equal prompts stand before it, and the number of the token: not on the other
// sequences of a batch, nor on how many ranks compute it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "base/philox.h"

namespace torchtitan::generation {

struct SamplingOptions {
  // Logits are divided by it; 0: the most likely token, of equal ones the first.
  double temperature;
  // Only tokens no less likely than the k-th most likely one.
  std::optional<int64_t> top_k;
};

class Sampler {
 public:
  // Throws ValueError for a temperature below 0 or not finite, or top_k below 1.
  Sampler(const SamplingOptions& options, uint64_t seed,
          const std::vector<std::vector<int64_t>>& prompts);

  // For logits [R, vocabulary]: new token number `index`, from 0, of prompt rows[r].
  // Throws ValueError if a row of logits has no largest number (NaN or infinite).
  std::vector<int64_t> choose(const at::Tensor& logits,
                              const std::vector<int64_t>& rows, int64_t index) const;

 private:
  SamplingOptions options_;
  std::vector<base::PhiloxStream> streams_;  // by prompt
};

}  // namespace torchtitan::generation
