#include "nn/loss_segment.h"

#include <utility>

namespace torchtitan::nn {
namespace {

class LossSegment final : public AutogradSegment {
 public:
  explicit LossSegment(LossFunction function)
      : AutogradSegment("loss", {"logits", "labels"}, {"loss"}, {}),
        function_(std::move(function)) {}

  TensorList compute(const TensorList& inputs,
                     const TensorList& /*parameters*/) const override {
    const auto loss = function_(inputs[0], inputs[1]);
    TORCH_CHECK_VALUE(loss.numel() == 1,
                      "the loss must be one number, the sum over valid "
                      "tokens, but has shape ",
                      loss.sizes());
    return {loss.view(at::IntArrayRef())};
  }

  // A loss has no product.
  Flops flops(const TensorList& /*inputs*/,
              const TensorList& /*parameters*/) const override {
    return {};
  }

 private:
  LossFunction function_;
};

}  // namespace

Model with_loss(Model model, LossFunction function) {
  model.segments.push_back(std::make_shared<LossSegment>(std::move(function)));
  return model;
}

}  // namespace torchtitan::nn
