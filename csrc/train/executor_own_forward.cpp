// The executor's part for models with a forward of their own (nn/own_forward.h): their
// code is called once a microbatch and asks the program to go on between its segments.
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <utility>

#include "train/executor.h"

namespace torchtitan::train {

using plan::ActionKind;

plan::StageShape Executor::own_stage(size_t position) const {
  if (!stages_.shapes.empty()) return stages_.shapes.at(position);
  return {.index = 0,
          .first_segment = 0,
          .num_segments = static_cast<int64_t>(model_.segments.size()),
          .is_last = true,
          .receives = false,
          .sends = false};
}

size_t Executor::own_stage_of(int64_t segment) const {
  size_t position = 0;
  while (segment >= own_stage(position).end()) ++position;
  return position;
}

void Executor::own_forward(const plan::Action& action) {
  const auto position = own_stage_of(action.segment);
  const auto stage = own_stage(position);
  TORCH_CHECK(action.segment == stage.first_segment, plan::to_string(action),
              ": a model with a forward of "
              "its own starts at its first segment");
  auto& live = live_.at(static_cast<size_t>(action.microbatch));
  check_gathered(*model_.segments.at(static_cast<size_t>(action.segment)));
  reached_ = action;
  auto values = live.values;
  if (stage.index > 0) {
    auto input = live.values.at(nn::kHidden).detach();
    if (keep_for_backward_) input.set_requires_grad(input.is_floating_point());
    values[nn::kHidden] = input;
    live.own_inputs.resize(std::max(live.own_inputs.size(), position + 1));
    live.own_inputs[position] = std::move(input);
    live.values.erase(nn::kHidden);
  } else {
    values.erase(nn::kHidden);
  }
  auto output = [&] {
    const c10::AutoGradMode mode(keep_for_backward_);
    return model_.own_forward(values, static_cast<int64_t>(position), this);
  }();
  reach_forward(stage.end() - 1);
  if (stage.is_last) {
    TORCH_CHECK_VALUE(output.numel() == 1,
                      "expected the sum of the loss over the microbatch as "
                      "one number, found a tensor of shape ",
                      output.sizes());
    live.values.clear();
    add_loss(output.detach().view(at::IntArrayRef()));
  } else {
    live.values[nn::kHidden] = output.detach();
  }
  if (!keep_for_backward_) return;
  live.own_outputs.resize(std::max(live.own_outputs.size(), position + 1));
  live.own_outputs[position] = std::move(output);
}

void Executor::own_backward(const plan::Action& action) {
  const auto position = own_stage_of(action.segment);
  const auto stage = own_stage(position);
  TORCH_CHECK(action.segment + 1 == stage.end(), plan::to_string(action),
              ": the backward of a model "
              "with a forward of its own starts at its last segment");
  auto& live = live_.at(static_cast<size_t>(action.microbatch));
  auto output = std::move(live.own_outputs.at(position));
  TORCH_CHECK(output.defined(), plan::to_string(action),
              ": backward without a forward");
  TORCH_CHECK_VALUE(output.requires_grad(), stage.is_last ? "the loss" : "a stage",
                    " does not depend on any parameter");
  auto gradient = loss_gradient_;
  if (!stage.is_last) {
    gradient = live.gradients.at(nn::kHidden);
    live.gradients.erase(nn::kHidden);
  }
  check_gathered(*model_.segments.at(static_cast<size_t>(action.segment)));
  prepare_gradients(*model_.segments.at(static_cast<size_t>(action.segment)));
  reached_ = action;
  torch::autograd::backward({output},
                            {gradient.to(output.scalar_type()).view(output.sizes())});
  reach_backward(stage.first_segment, [] {});
  if (stage.index == 0) return;
  auto& input = live.own_inputs.at(position);
  live.gradients[nn::kHidden] = input.grad();
  input.reset();
}

const plan::Action& Executor::next_compute(ActionKind expected, int64_t segment) {
  while (true) {
    TORCH_CHECK(next_ < program_->size(), "the program ends before ",
                plan::to_string(expected), " of segment ", segment);
    const auto& action = next_action();
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
  check_gathered(*model_.segments.at(s));
  prepare_gradients(*model_.segments.at(s));  // they are reduced after this
  if (weight) weight();
}

}  // namespace torchtitan::train
