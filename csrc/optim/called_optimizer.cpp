#include "optim/called_optimizer.h"

#include <c10/core/GradMode.h>

#include <utility>

namespace torchtitan::optim {

CalledOptimizer::CalledOptimizer(std::vector<at::Tensor> gradients,
                                 std::function<void()> update)
    : gradients_(std::move(gradients)), update_(std::move(update)) {}

void CalledOptimizer::step(size_t /*index*/, const ops::AdamScalars& /*scalars*/) {
  TORCH_CHECK_VALUE(false,
                    "an optimizer of one's own steps all parameters at once; it "
                    "cannot step a group during backward");
}

void CalledOptimizer::step_all(const ops::AdamScalars& scalars) {
  if (scalars.finite.is_meta()) return;
  if (scalars.finite.item<double>() == 0) return;
  const c10::AutoGradMode off(false);
  for (const auto& gradient : gradients_) gradient.mul_(scalars.clip);
  update_();
}

}  // namespace torchtitan::optim
