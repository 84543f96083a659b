#include "train/step.h"

#include <ATen/ops/clamp_min.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <map>

#include "ops/cross_entropy.h"
#include "ops/squared_norm.h"

namespace torchtitan::train {
namespace {

using plan::ActionKind;

at::Tensor count_tokens(const std::vector<Batch>& batches) {
  at::Tensor count;
  for (const auto& batch : batches) {
    const auto found = batch.find("labels");
    TORCH_CHECK_VALUE(found != batch.end(),
                      "a batch must have a tensor named 'labels'");
    const auto valid = found->second.ne(ops::kIgnoreIndex).sum().to(at::kDouble);
    count = count.defined() ? count.add(valid) : valid;
  }
  TORCH_CHECK_VALUE(count.defined(), "a step needs at least one microbatch");
  return count;
}

// Rows in equal parts.
std::vector<Batch> divide(const Batch& batch, int64_t parts) {
  std::vector<Batch> batches(static_cast<size_t>(parts));
  for (const auto& [name, tensor] : batch) {
    TORCH_CHECK_VALUE(tensor.size(0) % parts == 0, "evaluate: ", tensor.size(0),
                      " rows of '", name, "' cannot be divided among ", parts,
                      " microbatches");
    const int64_t rows = tensor.size(0) / parts;
    for (int64_t i = 0; i < parts; ++i) {
      batches[static_cast<size_t>(i)][name] = tensor.narrow(0, i * rows, rows);
    }
  }
  return batches;
}

}  // namespace

Step::Step(StepParts parts)
    : parts_(std::move(parts)),
      executor_(parts_.model, parts_.groups, parts_.recompute, parts_.stages) {}

StepResult Step::run(std::vector<Batch> microbatches, double learning_rate,
                     int64_t step) {
  const c10::AutoGradMode off(false);
  for (const auto& group : parts_.groups) {
    group->refresh();
    group->zero_gradient();
  }
  result_ = {};
  result_.local_tokens = count_tokens(microbatches);
  const auto options = result_.local_tokens.options();
  scalars_.learning_rate = at::scalar_tensor(learning_rate, options);
  scalars_.step = at::scalar_tensor(static_cast<double>(step), options);
  executor_.run(
      parts_.training_program, std::move(microbatches),
      [this](const plan::Action& action) { other_action(action); },
      record_times_ ? &times_ : nullptr);
  return result_;
}

Evaluation Step::evaluate(Batch batch) {
  const c10::AutoGradMode off(false);
  auto batches = divide(batch, parts_.evaluation_microbatches);
  const auto num_tokens = count_tokens(batches);
  for (const auto& group : parts_.groups) group->refresh();
  executor_.run(parts_.evaluation_program, std::move(batches),
                [](const plan::Action&) {});
  auto loss_sum = local_loss(num_tokens.options());
  parts_.pipeline_axis.all_reduce(loss_sum).wait();
  return {loss_sum, num_tokens};
}

at::Tensor Step::local_loss(const at::TensorOptions& options) const {
  const auto& loss = executor_.loss_sum();
  return loss.defined() ? loss.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true)
                        : at::zeros({}, options);
}

void Step::other_action(const plan::Action& action) {
  switch (action.kind) {
    case ActionKind::kCountTokens:
      result_.num_tokens = result_.local_tokens.clone();
      token_count_ = parts_.loss_axis.all_reduce(result_.num_tokens);
      return;
    case ActionKind::kWait:
      TORCH_CHECK(action.waits_for == ActionKind::kCountTokens,
                  "unexpected action: ", plan::to_string(action));
      return finish_token_count();
    case ActionKind::kClipGradient: return clip_gradient();
    case ActionKind::kOptimizerStep: return optimizer_step(action);
    default:
      TORCH_CHECK(false, "the step cannot run the action ", plan::to_string(action));
  }
}

void Step::finish_token_count() {
  token_count_.wait();
  // A batch without any valid token has loss 0 and gradient 0, not NaN.
  executor_.set_loss_gradient(at::reciprocal(at::clamp_min(result_.num_tokens, 1.0)));
}

at::Tensor Step::squared_norm(size_t begin, size_t end) const {
  // Shards of one axis are added up first, so that each axis is reduced once.
  std::map<std::string, std::pair<collectives::Group, at::Tensor>> sums;
  for (size_t i = begin; i < end; ++i) {
    const auto& group = *parts_.groups[i];
    auto squares = at::zeros({}, result_.local_tokens.options());
    for (const auto& gradient : group.counted_gradients()) {
      squares = squares.add(ops::squared_norm(gradient));
    }
    auto& [axis, sum] =
        sums.try_emplace(group.shard_axis().name(), group.shard_axis(), at::Tensor())
            .first->second;
    sum = sum.defined() ? sum.add(squares) : squares;
  }
  auto total = at::zeros({}, result_.local_tokens.options());
  for (auto& [name, entry] : sums) {
    entry.first.all_reduce(entry.second).wait();
    total = total.add(entry.second);
  }
  if (parts_.tensor_axis.size() > 1) parts_.tensor_axis.all_reduce(total).wait();
  return total;
}

void Step::clip_gradient() {
  result_.local_loss = local_loss(result_.local_tokens.options());
  auto loss = result_.local_loss.clone();
  parts_.loss_axis.all_reduce(loss).wait();
  auto squares = squared_norm(0, parts_.groups.size());
  if (parts_.pipeline_axis.size() > 1) {
    const auto both = at::stack({loss, squares});
    parts_.pipeline_axis.all_reduce(both).wait();
    loss = both[0];
    squares = both[1];
  }
  result_.loss = loss.div(at::clamp_min(result_.num_tokens, 1.0));
  result_.grad_norm = squares.sqrt();
  scalars_.clip =
      at::reciprocal(result_.grad_norm.add(1e-6)).mul(parts_.max_norm).clamp_max(1.0);
  result_.finite = at::isfinite(result_.grad_norm)
                       .logical_and(at::isfinite(result_.loss))
                       .to(at::kDouble);
  scalars_.finite = result_.finite;
}

void Step::optimizer_step(const plan::Action& action) {
  if (action.group < 0) return parts_.optimizer->step_all(scalars_);
  // A group that steps at its last reduction: clipping is impossible, the check its
  // own.
  const auto index = static_cast<size_t>(action.group);
  scalars_.clip = at::ones({}, scalars_.step.options());
  scalars_.finite = at::isfinite(squared_norm(index, index + 1)).to(at::kDouble);
  parts_.optimizer->step(index, scalars_);
}

}  // namespace torchtitan::train
