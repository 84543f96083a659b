// The hot training step: zero gradients, run the program, clip, optimizer, result.
// No logging, no Python, no host synchronisation; results are tensors.
//
// One gradient rule in every layout: the loss is the sum of cross-entropy over the
// valid tokens of the global batch divided by their number (all microbatches, all
// ranks), and gradients are summed over ranks, never averaged again.
#pragma once

#include <memory>
#include <vector>

#include "collectives/group.h"
#include "optim/optimizer.h"
#include "train/executor.h"

namespace torchtitan::train {

struct StepParts {
  nn::Model model;
  std::vector<std::shared_ptr<nn::ParameterGroup>> groups;
  std::vector<bool> recompute;                  // by segment
  plan::Program training_program;               // a whole step
  nn::Stages stages;                            // none: the model is the whole one
  plan::Program evaluation_program;             // forward only
  int64_t evaluation_microbatches;              // of the latter
  std::shared_ptr<optim::Optimizer> optimizer;  // its index i is group i
  collectives::Group loss_axis;                 // ranks that hold different tokens
  collectives::Group tensor_axis;               // ranks that divide the segments' work
  collectives::Group pipeline_axis;             // ranks that divide the segments
  double max_norm;                              // of the gradient of the global batch
};

// All 0-dim. Not read by the step itself, so reading one is what waits for the device.
struct StepResult {
  at::Tensor loss;        // global: sum of cross-entropy / valid tokens, float64
  at::Tensor grad_norm;   // global 2-norm before clipping, float64
  at::Tensor num_tokens;  // valid tokens of the global batch, float64
  at::Tensor local_loss;  // sum of cross-entropy on this rank; 0 without the last stage
  at::Tensor local_tokens;  // valid tokens on this rank, float64
  // 0 where loss or norm is not finite: nothing was changed, or, where groups step one
  // by one during backward, only those whose own gradient is finite.
  at::Tensor finite;
};

struct Evaluation {
  at::Tensor loss_sum;  // 0-dim float64, this rank's batch, in a pipeline on all ranks
  at::Tensor num_tokens;  // 0-dim float64, valid tokens of this rank's batch
};

class Step {
 public:
  explicit Step(StepParts parts);

  // One optimizer step over the microbatches of this rank. `step` counts from 1 (Adam's
  // bias correction). Each batch has "labels" [B, S] int64, -100 where not counted.
  StepResult run(std::vector<Batch> microbatches, double learning_rate, int64_t step);

  // Loss without gradients (those of the last step stay); all ranks of sharded groups
  // or of a pipeline must call it together. Rows of the batch are divided evenly among
  // the microbatches of the program.
  Evaluation evaluate(Batch batch);

  const std::vector<std::shared_ptr<nn::ParameterGroup>>& groups() const {
    return parts_.groups;
  }
  const plan::Program& training_program() const { return parts_.training_program; }

  // Whether run() records when its actions begin and end. Off, it costs nothing.
  void record_times(bool on) { record_times_ = on; }
  // By action of training_program(), of the last run that was recorded.
  std::vector<plan::Span> times() const {
    return times_.spans(parts_.training_program);
  }

 private:
  void other_action(const plan::Action& action);
  void finish_token_count();
  void clip_gradient();
  // A copy in float64, 0 where this rank has no loss.
  at::Tensor local_loss(const at::TensorOptions& options) const;
  void optimizer_step(const plan::Action& action);
  // Sum of squares of the gradients of groups [begin, end) over all shards, float64.
  at::Tensor squared_norm(size_t begin, size_t end) const;

  StepParts parts_;
  Executor executor_;
  bool record_times_ = false;
  ActionTimes times_;
  ops::AdamScalars scalars_;
  collectives::Handle token_count_;
  StepResult result_;
};

}  // namespace torchtitan::train
