#include "nn/segment.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

namespace torchtitan::nn {
namespace {

struct Graph final : Segment::Saved {
  TensorList inputs;   // leaves
  TensorList outputs;  // with their graph
};

}  // namespace

Segment::Segment(std::string name, std::vector<std::string> inputs,
                 std::vector<std::string> outputs, std::vector<ParameterRef> parameters)
    : name_(std::move(name)), inputs_(std::move(inputs)), outputs_(std::move(outputs)),
      parameters_(std::move(parameters)) {}

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
  graph->outputs = compute(graph->inputs, parameters);
  TensorList detached;
  detached.reserve(graph->outputs.size());
  for (const auto& output : graph->outputs) detached.push_back(output.detach());
  *saved = std::move(graph);
  return detached;
}

TensorList AutogradSegment::backward(std::unique_ptr<Saved> saved,
                                     const TensorList& output_gradients,
                                     const TensorList& /*parameters*/) {
  const auto* graph = static_cast<const Graph*>(saved.get());
  TensorList roots;
  TensorList gradients;
  for (size_t i = 0; i < graph->outputs.size(); ++i) {
    if (!output_gradients[i].defined() || !graph->outputs[i].requires_grad()) continue;
    roots.push_back(graph->outputs[i]);
    gradients.push_back(output_gradients[i]);
  }
  if (!roots.empty()) torch::autograd::backward(roots, gradients);
  TensorList input_gradients;
  for (const auto& input : graph->inputs) input_gradients.push_back(input.grad());
  return input_gradients;
}

}  // namespace torchtitan::nn
