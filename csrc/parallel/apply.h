// The one place that fixes which techniques are applied to a model and in what order.
#pragma once

#include <memory>
#include <vector>

#include "collectives/group.h"
#include "nn/model.h"
#include "nn/parameter_group.h"
#include "parallel/activation_checkpoint/select.h"
#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::parallel {

struct ApplyOptions {
  collectives::Group shards;    // fsdp axis; size 1: parameters stay whole
  collectives::Group replicas;  // dp_replicate axis
  collectives::Group tensor;    // tp axis, over which the model was built
  nn::GroupOptions parameters;
  plan::Reshard reshard_after_forward;
  int64_t overlap_depth;  // forwards or backwards that run during a gather or reduce
  activation_checkpoint::Policy recompute;
  int64_t num_microbatches;
  bool early_optimizer_step;  // a group steps at its last reduction
};

struct Applied {
  std::vector<std::shared_ptr<nn::ParameterGroup>> groups;
  collectives::Group tensor;
  activation_checkpoint::Choice checkpointing;
  std::vector<bool> recompute;  // by segment: forward runs again before backward
  plan::StepShape shape;
  plan::Program training_program;    // one step
  plan::Program evaluation_program;  // one microbatch, forward only
};

// Throws ValueError where the options do not fit the model.
Applied apply(const nn::Model& model, const ApplyOptions& options);

}  // namespace torchtitan::parallel
