#include "optim/adam.h"

#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

namespace torchtitan::optim {

Adam::Adam(std::vector<Target> targets, const AdamConfig& config)
    : targets_(std::move(targets)), config_(config) {
  for (const auto& target : targets_) {
    const auto options = target.parameter.options().dtype(config.state_dtype);
    states_.push_back({at::zeros_like(target.parameter, options),
                       at::zeros_like(target.parameter, options)});
  }
}

void Adam::step(size_t index, const ops::AdamScalars& scalars) {
  const c10::AutoGradMode off(false);
  const auto update = config_.implementation == Implementation::kFused
                          ? ops::adamw_
                          : ops::adamw_reference_;
  const auto& target = targets_.at(index);
  const auto& state = states_.at(index);
  update(target.parameter, target.gradient, state.exp_avg, state.exp_avg_sq,
         config_.update, scalars);
}

void Adam::step_all(const ops::AdamScalars& scalars) {
  for (size_t index = 0; index < targets_.size(); ++index) step(index, scalars);
}

}  // namespace torchtitan::optim
