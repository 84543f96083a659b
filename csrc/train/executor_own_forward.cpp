// The executor's part for models with a forward of their own (nn/own_forward.h): their
// code is called once a microbatch and asks the program to go on between its segments.
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <utility>

#include "train/executor.h"

namespace torchtitan::train {

using plan::ActionKind;

void Executor::own_forward(const plan::Action& action) {
  TORCH_CHECK(action.segment == 0, plan::to_string(action),
              ": a model with a forward of "
              "its own starts at its first segment");
  auto& live = live_.at(static_cast<size_t>(action.microbatch));
  check_gathered(*model_.segments.front());
  reached_ = action;
  auto loss = [&] {
    const c10::AutoGradMode mode(keep_for_backward_);
    return model_.own_forward(live.values, this);
  }();
  TORCH_CHECK_VALUE(loss.numel() == 1,
                    "expected the sum of the loss over the microbatch as "
                    "one number, found a tensor of shape ",
                    loss.sizes());
  reach_forward(static_cast<int64_t>(model_.segments.size()) - 1);
  live.values.clear();
  add_loss(loss.detach().view(at::IntArrayRef()));
  if (keep_for_backward_) live.own_loss = std::move(loss);
}

void Executor::own_backward(const plan::Action& action) {
  const auto last = static_cast<int64_t>(model_.segments.size()) - 1;
  TORCH_CHECK(action.segment == last, plan::to_string(action),
              ": the backward of a model "
              "with a forward of its own starts at its last segment");
  auto loss = std::move(live_.at(static_cast<size_t>(action.microbatch)).own_loss);
  TORCH_CHECK(loss.defined(), plan::to_string(action), ": backward without a forward");
  TORCH_CHECK_VALUE(loss.requires_grad(), "the loss does not depend on any parameter");
  check_gathered(*model_.segments.back());
  prepare_gradients(*model_.segments.back());
  reached_ = action;
  torch::autograd::backward({loss},
                            {loss_gradient_.to(loss.scalar_type()).view(loss.sizes())});
  reach_backward(0, [] {});
}

const plan::Action& Executor::next_compute(ActionKind expected, int64_t segment) {
  while (true) {
    TORCH_CHECK(next_ < program_->size(), "the program ends before ",
                plan::to_string(expected), " of segment ", segment);
    const auto& action = (*program_)[next_++];
    if (action.kind == ActionKind::kBackwardWeight) {
      own_backward_weight(action);
    } else if (plan::is_compute(action)) {
      TORCH_CHECK(action.microbatch == reached_.microbatch,
                  "unexpected action: ", plan::to_string(action));
      return action;
    } else {
      execute(action);
    }
  }
}

void Executor::reach_forward(int64_t segment) {
  const c10::AutoGradMode off(false);
  TORCH_CHECK_VALUE(
      segment >= reached_.segment, "segment ",
      model_.segments.at(static_cast<size_t>(segment))->name(),
      " is called a second time or out of order: in one forward each segment "
      "may be called once, in the order of the list");
  while (reached_.segment < segment) {
    reached_ = next_compute(ActionKind::kForward, segment);
    TORCH_CHECK(reached_.kind == ActionKind::kForward,
                "unexpected action: ", plan::to_string(reached_));
    check_gathered(*model_.segments.at(static_cast<size_t>(reached_.segment)));
  }
}

bool Executor::reach_backward(int64_t segment, const std::function<void()>& recompute) {
  const c10::AutoGradMode off(false);
  TORCH_CHECK(segment <= reached_.segment, "backward of segment ", segment,
              " after that of segment ", reached_.segment);
  while (reached_.segment > segment) {
    const auto& action = next_compute(ActionKind::kBackward, segment);
    const auto& part = *model_.segments.at(static_cast<size_t>(action.segment));
    check_gathered(part);
    if (action.kind == ActionKind::kRecompute) {
      // A segment that was not called, or whose result does not matter, stays as it is.
      if (action.segment == segment) recompute();
      continue;
    }
    TORCH_CHECK(plan::is_backward(action),
                "unexpected action: ", plan::to_string(action));
    prepare_gradients(part);
    reached_ = action;
  }
  return reached_.kind == ActionKind::kBackwardInput;
}

void Executor::at_backward_weight(int64_t segment, std::function<void()> weight) {
  live_.at(static_cast<size_t>(reached_.microbatch))
      .own_weights.at(static_cast<size_t>(segment)) = std::move(weight);
}

// Where nothing is left of the first half there is nothing to do: a segment that was
// not called, or the code around the segments.
void Executor::own_backward_weight(const plan::Action& action) {
  const c10::AutoGradMode off(false);
  const auto s = static_cast<size_t>(action.segment);
  const auto weight = std::exchange(
      live_.at(static_cast<size_t>(action.microbatch)).own_weights.at(s), nullptr);
  if (!weight) return;
  prepare_gradients(*model_.segments.at(s));
  weight();
}

}  // namespace torchtitan::train
