// Runs the model's part of a program: gathers, forwards, recomputes, backwards,
// reduces, messages between stages. Actions that are not the model's (token count,
// clipping, optimizer) go to the caller.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nn/model.h"
#include "nn/parameter_group.h"
#include "nn/stage_transport.h"
#include "plan/program.h"
#include "train/action_times.h"

namespace torchtitan::train {

// One microbatch: named tensors such as "input" and "labels".
using Batch = std::map<std::string, at::Tensor>;

class Executor final : private nn::Progress {
 public:
  using OtherActions = std::function<void(const plan::Action&)>;

  // Segment s runs again before its backward where recompute[s], keeping its inputs and
  // what Segment::keep() was asked for. Without stages the model is the whole one.
  Executor(nn::Model model, std::vector<std::shared_ptr<nn::ParameterGroup>> groups,
           std::vector<bool> recompute, nn::Stages stages);

  // Runs the actions in order. Values named "loss" are summed into loss_sum(); their
  // gradient is loss_gradient, which must be set before the first Backward.
  // Throws what a segment throws, with the action's text in front. `times`, if any, get
  // the begin and end of each action.
  void run(const plan::Program& program, std::vector<Batch> batches,
           const OtherActions& other, ActionTimes* times = nullptr);

  // 0-dim; of the values of this rank in the run under way or just ended. Undefined
  // where no segment gave a loss.
  const at::Tensor& loss_sum() const { return loss_sum_; }
  void set_loss_gradient(at::Tensor gradient) { loss_gradient_ = std::move(gradient); }

 private:
  // What a microbatch holds between its actions, by segment.
  struct Live {
    Batch values;
    Batch gradients;
    std::vector<std::unique_ptr<nn::Segment::Saved>> saved;
    std::vector<std::unique_ptr<nn::Segment::Saved>> kept;  // for Recompute
    std::vector<std::unique_ptr<nn::Segment::Saved>> rest;  // for BackwardWeight
    std::vector<nn::TensorList> inputs;
    std::vector<std::function<void()>> own_weights;  // for BackwardWeight
    // Of a model with a forward of its own, by stage: what it was given by the stage
    // before, a leaf, and what it made, with its graph.
    std::vector<at::Tensor> own_inputs, own_outputs;
  };

  // The next action of the program begins.
  const plan::Action& next_action();
  void execute(const plan::Action& action);
  void wait(const plan::Action& action);
  void forward(const plan::Action& action);
  void recompute(const plan::Action& action);
  void backward(const plan::Action& action);
  void backward_weight(const plan::Action& action);
  void start_send(const plan::Action& action);
  // Position of a stage of the pipeline among those of this rank.
  size_t position_of(int64_t stage) const;
  void check_gathered(const nn::Segment& segment) const;
  void prepare_gradients(const nn::Segment& segment);
  void add_loss(const at::Tensor& loss);

  // A model's own forward and backward: one call, from which the program goes on.
  plan::StageShape own_stage(size_t position) const;
  size_t own_stage_of(int64_t segment) const;
  void own_forward(const plan::Action& action);
  void own_backward(const plan::Action& action);
  void reach_forward(int64_t segment) override;
  bool reach_backward(int64_t segment, const std::function<void()>& recompute) override;
  void at_backward_weight(int64_t segment, std::function<void()> weight) override;
  void own_backward_weight(const plan::Action& action);
  // The next compute action, with all before it done.
  const plan::Action& next_compute(plan::ActionKind expected, int64_t segment);

  nn::Model model_;
  std::vector<std::shared_ptr<nn::ParameterGroup>> groups_;
  std::vector<bool> recompute_;
  nn::Stages stages_;
  std::vector<nn::TensorList> parameters_;  // leaves of each segment
  // Names of the inputs that no segment after this one reads and no stage sends on.
  std::vector<std::vector<std::string>> last_read_;
  std::vector<Live> live_;
  const plan::Program* program_ = nullptr;  // under way
  const OtherActions* other_ = nullptr;
  ActionTimes* times_ = nullptr;
  size_t next_ = 0;         // action of the program
  plan::Action reached_{};  // by a model's own code
  bool keep_for_backward_ = false;
  at::Tensor loss_sum_;
  at::Tensor loss_gradient_;
};

}  // namespace torchtitan::train
