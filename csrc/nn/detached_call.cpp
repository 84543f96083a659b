#include "nn/detached_call.h"

#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/core/ScalarType.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace torchtitan::nn {
namespace {

using torch::autograd::AutogradContext;

// What the backward of one call needs. Emptied by it.
struct Call final : torch::CustomClassHolder {
  int64_t segment = 0;
  Progress* progress = nullptr;
  TensorList inputs;   // leaves of the inner graph
  TensorList outputs;  // with the inner graph
  // Kept for recomputation only, with the versions of the inputs.
  TensorFunction function;
  std::vector<uint32_t> versions;

  void recompute() {
    for (size_t i = 0; i < inputs.size(); ++i) {
      TORCH_CHECK_VALUE(inputs[i]._version() == versions[i], "segment ", segment,
                        " runs again for its backward, but tensor ", i,
                        " of its "
                        "arguments was changed in place since its call");
    }
    const c10::AutoGradMode on(true);
    outputs = function(inputs);
    function = nullptr;
  }

  // Gradients of the inputs, undefined where there is none.
  TensorList backward(const TensorList& gradients) {
    TensorList roots;
    TensorList root_gradients;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!gradients[i].defined() || !outputs[i].requires_grad()) continue;
      roots.push_back(std::move(outputs[i]));
      root_gradients.push_back(gradients[i]);
    }
    outputs.clear();
    if (!roots.empty()) torch::autograd::backward(roots, root_gradients);
    TensorList input_gradients;
    for (const auto& input : inputs) input_gradients.push_back(input.grad());
    inputs.clear();
    return input_gradients;
  }
};

struct CallNode final : torch::autograd::Function<CallNode> {
  // `anchor` requires grad, so that there is a node where no input does.
  static TensorList forward(AutogradContext* ctx, at::TensorList /*inputs*/,
                            const at::Tensor& /*anchor*/,
                            const c10::intrusive_ptr<Call>& call) {
    TensorList results;
    TensorList constants;
    const bool recomputes = call->function != nullptr;
    for (const auto& output : call->outputs) {
      results.push_back(output.detach());
      const bool differentiable = recomputes ? at::isFloatingType(output.scalar_type())
                                             : output.requires_grad();
      if (!differentiable) constants.push_back(results.back());
    }
    if (recomputes) call->outputs.clear();
    ctx->mark_non_differentiable(constants);
    ctx->set_materialize_grads(false);
    ctx->saved_data["call"] = at::IValue::make_capsule(call);
    return results;
  }

  static TensorList backward(AutogradContext* ctx, const TensorList& gradients) {
    const auto capsule = ctx->saved_data["call"].toCapsule();
    auto& call = static_cast<Call&>(*capsule);
    call.progress->reach_backward(call.segment, [&] { call.recompute(); });
    auto input_gradients = call.backward(gradients);
    input_gradients.resize(input_gradients.size() + 2);  // of the anchor and the call
    return input_gradients;
  }
};

}  // namespace

TensorList detached_call(int64_t segment, const TensorList& inputs,
                         TensorFunction function, Progress& progress) {
  progress.reach_forward(segment);
  TensorList results;
  if (c10::GradMode::is_enabled()) {
    const auto call = c10::make_intrusive<Call>();
    call->segment = segment;
    call->progress = &progress;
    for (const auto& input : inputs) {
      call->inputs.push_back(input.detach().set_requires_grad(input.requires_grad()));
      call->versions.push_back(static_cast<uint32_t>(input._version()));
    }
    const bool recomputes = progress.recomputes(segment);
    {
      const c10::AutoGradMode keep(!recomputes);
      call->outputs = function(call->inputs);
    }
    if (recomputes) call->function = std::move(function);
    const auto anchor = at::empty({0}).set_requires_grad(true);
    results = CallNode::apply(at::TensorList(inputs), anchor, call);
  } else {
    results = function(inputs);
  }
  progress.reach_forward(segment + 1);
  return results;
}

}  // namespace torchtitan::nn
