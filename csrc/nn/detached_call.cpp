#include "nn/detached_call.h"

#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

#include "nn/host_store.h"
#include "nn/split_backward.h"

namespace torchtitan::nn {
namespace {

using torch::autograd::AutogradContext;

// What the backward of one call needs. Emptied by it.
struct Call final : torch::CustomClassHolder {
  int64_t segment = 0;
  Progress* progress = nullptr;
  TensorList inputs;                 // leaves of the inner graph
  TensorList outputs;                // with the inner graph, until the node is made
  torch::autograd::edge_list roots;  // of the inner graph, invalid where there is none
  // For recomputation only, with the versions of the inputs.
  Again again;
  std::vector<uint32_t> versions;
  TensorList values;  // of the inputs, where their leaves have dropped them

  // What the graph saved is recorded.
  static void let_go(const c10::intrusive_ptr<Call>& call) {
    if (call->again) {
      std::vector<at::Tensor*> places;
      for (const auto& input : call->inputs) {
        call->values.push_back(input.requires_grad() ? input.detach() : at::Tensor());
      }
      for (auto& value : call->values) places.push_back(&value);
      call->progress->keep(call->segment, std::move(places),
                           std::make_shared<c10::intrusive_ptr<Call>>(call));
    }
    for (const auto& input : call->inputs) {
      if (input.requires_grad()) drop_leaf_memory(input);
    }
  }

  void recompute() {
    if (!again) return;
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i].defined()) inputs[i].set_data(values[i]);
    }
    // Values that came back from host memory have versions of their own.
    for (size_t i = 0; i < inputs.size() && values.empty(); ++i) {
      TORCH_CHECK_VALUE(inputs[i]._version() == versions[i], "segment ", segment,
                        " runs again for its backward, but tensor ", i,
                        " of its "
                        "arguments was changed in place since its call");
    }
    const c10::AutoGradMode on(true);
    again(inputs);
    again = nullptr;
    values.clear();
  }

  // Gradients of the inputs, undefined where there is none.
  TensorList backward(const TensorList& gradients, bool is_divided) {
    torch::autograd::edge_list from;
    TensorList root_gradients;
    for (size_t i = 0; i < roots.size(); ++i) {
      if (!gradients[i].defined() || !roots[i].is_valid()) continue;
      from.push_back(std::move(roots[i]));
      root_gradients.push_back(gradients[i]);
    }
    roots.clear();
    TensorList input_gradients(inputs.size());
    if (from.empty()) {
      inputs.clear();
      return input_gradients;
    }
    if (is_divided) {
      divide(from, root_gradients, input_gradients);
    } else {
      torch::autograd::Engine::get_default_engine().execute(
          from, root_gradients, /*keep_graph=*/false, /*create_graph=*/false,
          /*accumulate_grad=*/true);
      for (size_t i = 0; i < inputs.size(); ++i) input_gradients[i] = inputs[i].grad();
    }
    inputs.clear();
    return input_gradients;
  }

 private:
  void divide(const torch::autograd::edge_list& from, const TensorList& gradients,
              TensorList& input_gradients) {
    TensorList differentiable;
    std::vector<size_t> places;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].requires_grad()) continue;
      differentiable.push_back(inputs[i]);
      places.push_back(i);
    }
    std::unique_ptr<RestOfBackward> rest;
    auto found = split_backward(from, gradients, differentiable, &rest);
    for (size_t i = 0; i < places.size(); ++i) {
      input_gradients[places[i]] = std::move(found[i]);
    }
    if (!rest) return;
    progress->at_backward_weight(
        segment,
        [rest = std::shared_ptr<RestOfBackward>(std::move(rest))] { rest->run(); });
  }
};

struct CallNode final : torch::autograd::Function<CallNode> {
  // `anchor` requires grad, so that there is a node where no input does.
  static TensorList forward(AutogradContext* ctx, at::TensorList /*inputs*/,
                            const at::Tensor& /*anchor*/,
                            const c10::intrusive_ptr<Call>& call) {
    TensorList results;
    TensorList constants;
    for (const auto& output : std::exchange(call->outputs, {})) {
      results.push_back(output.detach());
      if (!output.requires_grad()) constants.push_back(results.back());
    }
    ctx->mark_non_differentiable(constants);
    ctx->set_materialize_grads(false);
    ctx->saved_data["call"] = at::IValue::make_capsule(call);
    return results;
  }

  static TensorList backward(AutogradContext* ctx, const TensorList& gradients) {
    const auto capsule = ctx->saved_data["call"].toCapsule();
    auto& call = static_cast<Call&>(*capsule);
    const bool is_divided =
        call.progress->reach_backward(call.segment, [&] { call.recompute(); });
    auto input_gradients = call.backward(gradients, is_divided);
    input_gradients.resize(input_gradients.size() + 2);  // of the anchor and the call
    return input_gradients;
  }
};

}  // namespace

TensorList detached_call(int64_t segment, const TensorList& inputs,
                         const TensorFunction& function, Again again,
                         Progress& progress) {
  progress.reach_forward(segment);
  TensorList results;
  if (c10::GradMode::is_enabled()) {
    const auto call = c10::make_intrusive<Call>();
    call->segment = segment;
    call->progress = &progress;
    call->again = std::move(again);
    for (const auto& input : inputs) {
      call->inputs.push_back(input.detach().set_requires_grad(input.requires_grad()));
      call->versions.push_back(static_cast<uint32_t>(input._version()));
    }
    const bool is_recorded =
        progress.record(segment, [&] { call->outputs = function(call->inputs); });
    for (const auto& output : call->outputs) {
      call->roots.push_back(output.requires_grad()
                                ? torch::autograd::impl::gradient_edge(output)
                                : torch::autograd::Edge());
    }
    const auto anchor = at::empty({0}).set_requires_grad(true);
    results = CallNode::apply(at::TensorList(inputs), anchor, call);
    if (is_recorded) Call::let_go(call);
  } else {
    results = function(inputs);
  }
  progress.reach_forward(segment + 1);
  return results;
}

}  // namespace torchtitan::nn
