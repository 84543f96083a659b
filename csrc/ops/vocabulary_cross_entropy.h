// Cross-entropy over a vocabulary that is divided among ranks (Shoeybi et al. 2019):
// each rank has the logits [N, v] of classes [first, first + v); v may be 0. Three
// numbers of each token and rank are exchanged, never the logits. Meaning of labels [N]
// and of the sum as in ops/cross_entropy.h. No autograd; float32 or wider arithmetic.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::ops {

// [3, N] in float32, for float64 logits in float64: the largest logit, the sum of exp
// of the logits minus it, the logit of the label (0 where another rank has it).
at::Tensor vocabulary_statistics(const at::Tensor& logits, const at::Tensor& labels,
                                 int64_t first);

struct VocabularyLoss {
  at::Tensor sum;          // 0-dim float64, over tokens whose label counts
  at::Tensor log_sum_exp;  // [N] over the whole vocabulary
};
// From the statistics of all ranks, [ranks, 3, N].
VocabularyLoss vocabulary_cross_entropy(const at::Tensor& statistics,
                                        const at::Tensor& labels);

// The logits become the gradient of the sum.
void vocabulary_gradient_(const at::Tensor& logits, const at::Tensor& labels,
                          int64_t first, const at::Tensor& log_sum_exp);

}  // namespace torchtitan::ops
