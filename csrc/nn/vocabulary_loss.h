// Cross-entropy where each rank of a tensor axis has the logits [N, v] of its part of
// the vocabulary, from class `first` on (ops/vocabulary_cross_entropy.h). Every rank
// gets the whole loss.
#pragma once

#include "nn/tensor_axis.h"
#include "ops/vocabulary_cross_entropy.h"

namespace torchtitan::nn {

// Not seen by autograd.
ops::VocabularyLoss vocabulary_loss(const at::Tensor& logits, const at::Tensor& labels,
                                    int64_t first, const TensorAxis& axis);

// Its sum, differentiable: the gradient of this rank's logits.
at::Tensor vocabulary_loss_sum(const at::Tensor& logits, const at::Tensor& labels,
                               int64_t first, const TensorAxis& axis);

}  // namespace torchtitan::nn
