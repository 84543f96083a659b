// An optimizer that lives outside: it is called once a step, with the clipped gradients
// in place, and updates the parameters itself.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "optim/optimizer.h"

namespace torchtitan::optim {

class CalledOptimizer final : public Optimizer {
 public:
  // `gradients` of all groups are scaled in place before `update` is called.
  CalledOptimizer(std::vector<at::Tensor> gradients, std::function<void()> update);

  // Throws ValueError: such an optimizer steps all groups at once.
  void step(size_t index, const ops::AdamScalars& scalars) override;
  // Waits for the device: whether to call is decided by the host.
  void step_all(const ops::AdamScalars& scalars) override;

 private:
  std::vector<at::Tensor> gradients_;
  std::function<void()> update_;
};

}  // namespace torchtitan::optim
