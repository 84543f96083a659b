// Adam and AdamW over flat buffers, one per parameter group. State is laid out like the
// buffer it belongs to, so a sharded group has sharded state.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "ops/adamw.h"
#include "optim/optimizer.h"

namespace torchtitan::optim {

enum class Implementation {
  kFused,     // one pass over memory per group
  kReference  // plain tensor operations ("for-loop", "foreach")
};

struct AdamConfig {
  ops::AdamOptions update;
  Implementation implementation;
  at::ScalarType state_dtype;
};

// A flat parameter buffer and the gradient that each step reads, both [N].
struct Target {
  at::Tensor parameter;
  at::Tensor gradient;
};

class Adam final : public Optimizer {
 public:
  Adam(std::vector<Target> targets, const AdamConfig& config);

  size_t size() const { return targets_.size(); }
  // Updates target `index`. Scalars are 0-dim float64 tensors.
  void step(size_t index, const ops::AdamScalars& scalars) override;
  void step_all(const ops::AdamScalars& scalars) override;

  // [N] of target `index`, in state_dtype; zero before the first step.
  const at::Tensor& exp_avg(size_t index) const { return states_.at(index).exp_avg; }
  const at::Tensor& exp_avg_sq(size_t index) const {
    return states_.at(index).exp_avg_sq;
  }

 private:
  struct State {
    at::Tensor exp_avg;
    at::Tensor exp_avg_sq;
  };
  std::vector<Target> targets_;
  std::vector<State> states_;
  AdamConfig config_;
};

}  // namespace torchtitan::optim
