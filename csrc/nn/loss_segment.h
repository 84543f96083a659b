// A loss that is given as a function, as the last segment of a model that ends in
// logits.
#pragma once

#include <functional>

#include "nn/model.h"

namespace torchtitan::nn {

// (logits, labels) to the sum of the loss over the valid tokens, one number.
using LossFunction = std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>;

// `model`, which gives a value "logits", with a segment that turns it and "labels" into
// "loss".
Model with_loss(Model model, LossFunction function);

}  // namespace torchtitan::nn
