// A parameter group that is whole on every rank: one process, or replicas that sum
// their gradients once a step (data parallel, Li et al. 2020).
#pragma once

#include <optional>

#include "nn/parameter_group.h"

namespace torchtitan::nn {

class WholeGroup final : public ParameterGroup {
 public:
  WholeGroup(ParameterGroupSpec spec, GroupOptions options,
             collectives::Group replicas);

  const collectives::Group& shard_axis() const override { return alone_; }
  const collectives::Group& replica_axis() const override { return replicas_; }
  void refresh() override;
  void zero_gradient() override;
  void start_unshard() override {}
  void wait_unshard() override {}
  void reshard() override {}
  bool gathered() const override { return true; }
  void prepare_gradients() override {}  // zero_gradient() attached them
  void start_reduce() override {}
  void wait_reduce() override {}

 private:
  collectives::Group alone_;
  collectives::Group replicas_;
  at::Tensor compute_;  // [numel] in compute_dtype; master itself where that is equal
  TensorList gradient_views_;
};

}  // namespace torchtitan::nn
