#include "train/executor.h"

#include <ATen/ops/add.h>

#include <algorithm>
#include <set>
#include <sstream>

namespace torchtitan::train {
namespace {

using plan::ActionKind;

constexpr const char* kLoss = "loss";

// Equal for runs whose messages have equal shapes.
std::string signature(const Batch& batch, bool training) {
  std::ostringstream text;
  text << (training ? "training" : "evaluation");
  for (const auto& [name, tensor] : batch) text << ' ' << name << tensor.sizes();
  return text.str();
}

// Moves the values of these names out of a map.
nn::StageTransport::Values take(Batch& values, const std::vector<std::string>& names) {
  nn::StageTransport::Values taken;
  for (const auto& name : names) {
    if (auto entry = values.extract(name)) taken.insert(std::move(entry));
  }
  return taken;
}

void put(nn::StageTransport::Values values, Batch& into) {
  for (auto& [name, tensor] : values) into[name] = std::move(tensor);
}

}  // namespace

Executor::Executor(nn::Model model,
                   std::vector<std::shared_ptr<nn::ParameterGroup>> groups,
                   std::vector<bool> recompute, nn::Stages stages)
    : model_(std::move(model)), groups_(std::move(groups)),
      recompute_(std::move(recompute)), stages_(std::move(stages)) {
  TORCH_CHECK_VALUE(recompute_.size() == model_.segments.size(),
                    "expected one recompute "
                    "flag for each of ",
                    model_.segments.size(), " segments, found ", recompute_.size());
  for (const auto& segment : model_.segments) {
    nn::TensorList leaves;
    for (const auto& reference : segment->parameters()) {
      leaves.push_back(groups_.at(static_cast<size_t>(reference.group))
                           ->leaves()
                           .at(static_cast<size_t>(reference.slot)));
    }
    parameters_.push_back(std::move(leaves));
  }
  last_read_.resize(model_.segments.size());
  std::set<std::string> read;
  for (const auto& names : stages_.outputs) read.insert(names.begin(), names.end());
  for (size_t s = model_.segments.size(); s-- > 0;) {
    for (const auto& name : model_.segments[s]->inputs()) {
      if (read.insert(name).second) last_read_[s].push_back(name);
    }
  }
}

void Executor::run(const plan::Program& program, std::vector<Batch> batches,
                   const OtherActions& other, ActionTimes* times) {
  live_.clear();
  for (auto& batch : batches) {
    Live live;
    live.values = std::move(batch);
    live.saved.resize(model_.segments.size());
    live.kept.resize(model_.segments.size());
    live.own_weights.resize(model_.segments.size());
    live.rest.resize(model_.segments.size());
    live.inputs.resize(model_.segments.size());
    live_.push_back(std::move(live));
  }
  loss_sum_ = at::Tensor();
  keep_for_backward_ =
      std::any_of(program.begin(), program.end(),
                  [](const plan::Action& action) { return plan::is_backward(action); });
  if (stages_.transport) {
    stages_.transport->begin(signature(live_.at(0).values, keep_for_backward_));
  }
  program_ = &program;
  other_ = &other;
  times_ = times;
  if (times_) times_->begin_run(program.size());
  // A model with a forward of its own moves on from within an action.
  for (next_ = 0; next_ < program.size();) execute(next_action());
  if (times_) times_->end_run();
  live_.clear();
}

const plan::Action& Executor::next_action() {
  if (times_) times_->mark();
  return (*program_)[next_++];
}

void Executor::execute(const plan::Action& action) {
  const auto group = [&] { return groups_.at(static_cast<size_t>(action.group)); };
  switch (action.kind) {
    case ActionKind::kForward:
      return model_.own_forward ? own_forward(action) : forward(action);
    case ActionKind::kRecompute: return recompute(action);
    case ActionKind::kBackward:
    case ActionKind::kBackwardInput:
      return model_.own_forward ? own_backward(action) : backward(action);
    case ActionKind::kBackwardWeight:
      return model_.own_forward ? own_backward_weight(action) : backward_weight(action);
    case ActionKind::kSendActivation:
    case ActionKind::kSendGradient: return start_send(action);
    case ActionKind::kReceiveActivation:
    case ActionKind::kReceiveGradient: return stages_.transport->start_receive(action);
    case ActionKind::kUnshard: return group()->start_unshard();
    case ActionKind::kReshard: return group()->reshard();
    case ActionKind::kReduceGradient: return group()->start_reduce();
    case ActionKind::kAllReduceGradient: return group()->start_replica_reduce();
    case ActionKind::kSumCopies: return group()->start_copy_sum();
    case ActionKind::kWait: return wait(action);
    default: return (*other_)(action);
  }
}

void Executor::wait(const plan::Action& action) {
  const auto group = [&] { return groups_.at(static_cast<size_t>(action.group)); };
  switch (action.waits_for) {
    case ActionKind::kUnshard: return group()->wait_unshard();
    case ActionKind::kReduceGradient: return group()->wait_reduce();
    case ActionKind::kAllReduceGradient: return group()->wait_replica_reduce();
    case ActionKind::kSumCopies: return group()->wait_copy_sum();
    case ActionKind::kSendActivation:
    case ActionKind::kSendGradient: stages_.transport->wait(action); return;
    case ActionKind::kReceiveActivation:
      return put(stages_.transport->wait(action),
                 live_.at(static_cast<size_t>(action.microbatch)).values);
    case ActionKind::kReceiveGradient:
      return put(stages_.transport->wait(action),
                 live_.at(static_cast<size_t>(action.microbatch)).gradients);
    default: return (*other_)(action);
  }
}

size_t Executor::position_of(int64_t stage) const {
  const auto found =
      std::find_if(stages_.shapes.begin(), stages_.shapes.end(),
                   [&](const plan::StageShape& shape) { return shape.index == stage; });
  TORCH_CHECK(found != stages_.shapes.end(), "this rank does not have stage ", stage);
  return static_cast<size_t>(found - stages_.shapes.begin());
}

void Executor::start_send(const plan::Action& action) {
  const auto position = position_of(action.stage);
  auto& live = live_.at(static_cast<size_t>(action.microbatch));
  stages_.transport->start_send(action,
                                action.kind == ActionKind::kSendActivation
                                    ? take(live.values, stages_.outputs[position])
                                    : take(live.gradients, stages_.inputs[position]));
}

void Executor::check_gathered(const nn::Segment& segment) const {
  for (const auto& reference : segment.parameters()) {
    const auto& group = *groups_[static_cast<size_t>(reference.group)];
    TORCH_CHECK(group.gathered(), "segment ", segment.name(), " runs while group ",
                group.spec().name, " is not gathered");
  }
}

void Executor::prepare_gradients(const nn::Segment& segment) {
  for (const auto& reference : segment.parameters()) {
    groups_[static_cast<size_t>(reference.group)]->prepare_gradients();
  }
}

void Executor::add_loss(const at::Tensor& loss) {
  loss_sum_ = loss_sum_.defined() ? at::add(loss_sum_, loss) : loss;
}

void Executor::forward(const plan::Action& action) {
  const auto s = static_cast<size_t>(action.segment);
  auto& segment = *model_.segments.at(s);
  auto& live = live_.at(static_cast<size_t>(action.microbatch));
  check_gathered(segment);
  nn::TensorList inputs;
  for (const auto& name : segment.inputs()) {
    const auto found = live.values.find(name);
    TORCH_CHECK_VALUE(found != live.values.end(), "segment ", segment.name(),
                      " reads the value '", name,
                      "', which no earlier segment and no "
                      "tensor of the batch provides");
    inputs.push_back(found->second);
  }
  auto outputs =
      keep_for_backward_ && recompute_[s]
          ? segment.forward_for_recompute(inputs, parameters_[s], &live.kept[s])
          : segment.forward(inputs, parameters_[s],
                            keep_for_backward_ ? &live.saved[s] : nullptr);
  if (keep_for_backward_ && recompute_[s]) live.inputs[s] = std::move(inputs);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& name = segment.outputs()[i];
    if (name == kLoss) {
      add_loss(outputs[i]);
    } else {
      live.values[name] = std::move(outputs[i]);
    }
  }
  for (const auto& name : last_read_[s]) live.values.erase(name);
}

void Executor::recompute(const plan::Action& action) {
  const auto s = static_cast<size_t>(action.segment);
  auto& live = live_.at(static_cast<size_t>(action.microbatch));
  check_gathered(*model_.segments.at(s));
  model_.segments[s]->recompute(live.inputs[s], parameters_[s], std::move(live.kept[s]),
                                &live.saved[s]);
  live.inputs[s].clear();
}

void Executor::backward(const plan::Action& action) {
  const auto s = static_cast<size_t>(action.segment);
  auto& segment = *model_.segments.at(s);
  auto& live = live_.at(static_cast<size_t>(action.microbatch));
  check_gathered(segment);
  TORCH_CHECK(live.saved[s], "segment ", segment.name(),
              ": backward without a forward");
  prepare_gradients(segment);
  nn::TensorList output_gradients;
  for (const auto& name : segment.outputs()) {
    if (name == kLoss) {
      output_gradients.push_back(loss_gradient_);
      continue;
    }
    // Taken away before the inputs' gradients are stored: a block reads and writes "h".
    const auto found = live.gradients.find(name);
    output_gradients.push_back(found == live.gradients.end() ? at::Tensor()
                                                             : found->second);
    if (found != live.gradients.end()) live.gradients.erase(found);
  }
  auto input_gradients =
      action.kind == ActionKind::kBackwardInput
          ? segment.backward_input(std::move(live.saved[s]), output_gradients,
                                   parameters_[s], &live.rest[s])
          : segment.backward(std::move(live.saved[s]), output_gradients,
                             parameters_[s]);
  for (size_t i = 0; i < input_gradients.size(); ++i) {
    if (!input_gradients[i].defined()) continue;
    auto& gradient = live.gradients[segment.inputs()[i]];
    gradient = gradient.defined() ? at::add(gradient, input_gradients[i])
                                  : std::move(input_gradients[i]);
  }
  // What is left of the microbatch: gradients to be sent and gradients of parameters.
  if (s == 0) live.values.clear();
}

void Executor::backward_weight(const plan::Action& action) {
  const auto s = static_cast<size_t>(action.segment);
  auto& rest = live_.at(static_cast<size_t>(action.microbatch)).rest[s];
  prepare_gradients(*model_.segments.at(s));  // they are reduced after this
  // The first half may have left nothing to do.
  if (rest) model_.segments[s]->backward_weight(std::move(rest), parameters_[s]);
}

}  // namespace torchtitan::train
