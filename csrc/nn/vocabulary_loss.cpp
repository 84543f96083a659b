#include "nn/vocabulary_loss.h"

#include <torch/csrc/autograd/custom_function.h>

namespace torchtitan::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class LossSum final : public torch::autograd::Function<LossSum> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& logits,
                            const at::Tensor& labels, int64_t first,
                            const TensorAxis& axis) {
    const auto [sum, log_sum_exp] = vocabulary_loss(logits, labels, first, axis);
    ctx->save_for_backward({logits, labels, log_sum_exp});
    ctx->saved_data["first"] = first;
    return sum;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto gradient = saved[0].clone();
    ops::vocabulary_gradient_(gradient, saved[1], ctx->saved_data["first"].toInt(),
                              saved[2]);
    return {gradient.mul_(gradients[0].to(gradient.scalar_type())), at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

}  // namespace

ops::VocabularyLoss vocabulary_loss(const at::Tensor& logits, const at::Tensor& labels,
                                    int64_t first, const TensorAxis& axis) {
  const auto own = ops::vocabulary_statistics(logits, labels, first);
  const auto all = axis.gather(own).view({axis.size(), 3, labels.size(0)});
  return ops::vocabulary_cross_entropy(all, labels);
}

at::Tensor vocabulary_loss_sum(const at::Tensor& logits, const at::Tensor& labels,
                               int64_t first, const TensorAxis& axis) {
  return LossSum::apply(logits, labels, first, axis);
}

}  // namespace torchtitan::nn
