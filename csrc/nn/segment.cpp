#include "nn/segment.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/variable.h>

#include "nn/host_store.h"
#include "nn/split_backward.h"

namespace torchtitan::nn {
namespace {

struct Graph final : Segment::Saved {
  TensorList inputs;                 // leaves
  torch::autograd::edge_list roots;  // of the outputs, invalid where there is no graph

  void let_go() override {
    for (const auto& input : inputs) {
      if (input.requires_grad()) drop_leaf_memory(input);
    }
  }
};

struct Rest final : Segment::Saved {
  std::unique_ptr<RestOfBackward> graph;
};

struct Roots {
  torch::autograd::edge_list edges;
  TensorList gradients;
};

// The outputs that have a graph and a gradient.
Roots roots_of(const Graph& graph, const TensorList& output_gradients) {
  Roots roots;
  for (size_t i = 0; i < graph.roots.size(); ++i) {
    if (!output_gradients[i].defined() || !graph.roots[i].is_valid()) continue;
    roots.edges.push_back(graph.roots[i]);
    roots.gradients.push_back(output_gradients[i]);
  }
  return roots;
}

}  // namespace

Segment::Segment(std::string name, std::vector<std::string> inputs,
                 std::vector<std::string> outputs, std::vector<ParameterRef> parameters)
    : name_(std::move(name)), inputs_(std::move(inputs)), outputs_(std::move(outputs)),
      parameters_(std::move(parameters)) {}

void Segment::renumber_groups(const std::vector<int64_t>& new_index) {
  for (auto& reference : parameters_) {
    reference.group = new_index.at(static_cast<size_t>(reference.group));
  }
}

TensorList AutogradSegment::forward(const TensorList& inputs,
                                    const TensorList& parameters,
                                    std::unique_ptr<Saved>* saved) {
  if (saved == nullptr) {
    const c10::AutoGradMode off(false);
    return compute(inputs, parameters);
  }
  const c10::AutoGradMode on(true);
  auto graph = std::make_unique<Graph>();
  graph->inputs.reserve(inputs.size());
  for (const auto& input : inputs) {
    graph->inputs.push_back(
        input.detach().set_requires_grad(input.is_floating_point()));
  }
  TensorList detached;
  for (const auto& output : compute(graph->inputs, parameters)) {
    graph->roots.push_back(output.requires_grad()
                               ? torch::autograd::impl::gradient_edge(output)
                               : torch::autograd::Edge());
    detached.push_back(output.detach());
  }
  *saved = std::move(graph);
  return detached;
}

TensorList AutogradSegment::backward(std::unique_ptr<Saved> saved,
                                     const TensorList& output_gradients,
                                     const TensorList& /*parameters*/) {
  const auto* graph = static_cast<const Graph*>(saved.get());
  const auto roots = roots_of(*graph, output_gradients);
  if (!roots.edges.empty()) {
    torch::autograd::Engine::get_default_engine().execute(
        roots.edges, roots.gradients, /*keep_graph=*/false, /*create_graph=*/false,
        /*accumulate_grad=*/true);
  }
  TensorList input_gradients;
  for (const auto& input : graph->inputs) input_gradients.push_back(input.grad());
  return input_gradients;
}

TensorList AutogradSegment::backward_input(std::unique_ptr<Saved> saved,
                                           const TensorList& output_gradients,
                                           const TensorList& /*parameters*/,
                                           std::unique_ptr<Saved>* rest) {
  const auto& graph = static_cast<const Graph&>(*saved);
  const auto roots = roots_of(graph, output_gradients);
  TensorList differentiable;
  for (const auto& input : graph.inputs) {
    if (input.requires_grad()) differentiable.push_back(input);
  }
  auto left = std::make_unique<Rest>();
  auto gradients =
      split_backward(roots.edges, roots.gradients, differentiable, &left->graph);
  TensorList input_gradients;
  auto next = gradients.begin();
  for (const auto& input : graph.inputs) {
    input_gradients.push_back(input.requires_grad() ? std::move(*next++)
                                                    : at::Tensor());
  }
  rest->reset();
  if (left->graph) *rest = std::move(left);
  return input_gradients;
}

void AutogradSegment::backward_weight(std::unique_ptr<Saved> rest,
                                      const TensorList& /*parameters*/) {
  if (rest) static_cast<Rest&>(*rest).graph->run();
}

}  // namespace torchtitan::nn
