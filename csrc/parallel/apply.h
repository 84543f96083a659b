// The one place that fixes which techniques are applied to a model and in what order.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "collectives/group.h"
#include "nn/host_store.h"
#include "nn/model.h"
#include "nn/parameter_group.h"
#include "parallel/activation_checkpoint/select.h"
#include "parallel/pipeline/stages.h"
#include "plan/program.h"
#include "plan/schedules/schedule.h"
#include "plan/step_shape.h"

namespace torchtitan::parallel {

struct PipelineOptions {
  collectives::Group group;              // pp axis
  plan::schedules::Schedule training;    // of the microbatches of one round
  int64_t rounds;                        // that a step has
  plan::schedules::Schedule evaluation;  // forwards only
};

struct ApplyOptions {
  collectives::Group shards;    // fsdp axis; size 1: parameters stay whole
  collectives::Group replicas;  // dp_replicate axis
  collectives::Group tensor;    // tp axis, over which the model was built
  nn::GroupOptions parameters;
  plan::Reshard reshard_after_forward;
  int64_t overlap_depth;  // forwards or backwards that run during a gather or reduce
  activation_checkpoint::Policy recompute;
  // Takes what blocks keep for their backward, where that is not soon; null: they keep
  // it on the device.
  std::shared_ptr<nn::HostStore> host = nullptr;
  int64_t num_microbatches;
  bool early_optimizer_step;  // a group steps at its last reduction
  std::optional<PipelineOptions> pipeline = std::nullopt;  // of a part with stages
};

struct Applied {
  nn::Model model;                // this rank's part
  std::vector<int64_t> segments;  // of the whole model, by segment of the part
  nn::Stages stages;
  collectives::Group pipeline;
  std::vector<std::shared_ptr<nn::ParameterGroup>> groups;
  collectives::Group tensor;
  activation_checkpoint::Choice checkpointing;
  std::vector<bool> recompute;  // by segment: forward runs again before backward
  std::shared_ptr<nn::HostStore> host;
  plan::StepShape shape;
  plan::Program training_program;    // one step
  plan::Program evaluation_program;  // forward only
  int64_t evaluation_microbatches;   // of the latter
};

// A model that lies whole on every rank of the pipeline axis.
pipeline::Part whole(nn::Model model);

// Throws ValueError where the options do not fit the part of the model.
Applied apply(pipeline::Part part, const ApplyOptions& options);

}  // namespace torchtitan::parallel
