// The one place that fixes which techniques are applied to a model and in what order.
#pragma once

#include <memory>
#include <vector>

#include "collectives/group.h"
#include "nn/model.h"
#include "nn/parameter_group.h"
#include "parallel/activation_checkpoint/select.h"
#include "plan/program.h"

namespace torchtitan::parallel {

enum class Reshard {
  kAlways,   // every group is freed after its forward
  kDefault,  // every group but the last, which backward needs at once
  kNever,    // groups stay gathered until their backward has ended
};

struct ApplyOptions {
  collectives::Group shards;    // fsdp axis; size 1: parameters stay whole
  collectives::Group replicas;  // dp_replicate axis
  nn::GroupOptions parameters;
  Reshard reshard_after_forward;
  int64_t prefetch_depth;       // groups gathered ahead of their use
  activation_checkpoint::Policy recompute;
  int64_t num_microbatches;
  bool early_optimizer_step;    // a group steps at its last reduction
};

struct Applied {
  std::vector<std::shared_ptr<nn::ParameterGroup>> groups;
  std::vector<bool> recompute;       // by segment: forward runs again before backward
  plan::Program training_program;    // one step
  plan::Program evaluation_program;  // one microbatch, forward only
};

// Throws ValueError where the options do not fit the model.
Applied apply(const nn::Model& model, const ApplyOptions& options);

}  // namespace torchtitan::parallel
