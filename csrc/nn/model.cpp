#include "nn/model.h"

namespace torchtitan::nn {

std::map<std::string, at::Tensor> forward(const Model& model,
                                          const std::vector<TensorList>& parameters,
                                          std::map<std::string, at::Tensor> values) {
  for (const auto& segment : model.segments) {
    const auto* differentiable = dynamic_cast<const AutogradSegment*>(segment.get());
    TORCH_CHECK_VALUE(differentiable != nullptr, "segment ", segment->name(),
                      " cannot be run as a plain differentiable function");
    TensorList inputs;
    for (const auto& name : segment->inputs()) {
      const auto found = values.find(name);
      TORCH_CHECK_VALUE(found != values.end(), "segment ", segment->name(),
                        " needs a value named '", name, "'");
      inputs.push_back(found->second);
    }
    TensorList arguments;
    for (const auto& reference : segment->parameters()) {
      arguments.push_back(parameters.at(static_cast<size_t>(reference.group))
                              .at(static_cast<size_t>(reference.slot)));
    }
    auto outputs = differentiable->compute(inputs, arguments);
    for (size_t i = 0; i < outputs.size(); ++i) {
      values[segment->outputs()[i]] = std::move(outputs[i]);
    }
  }
  return values;
}

}  // namespace torchtitan::nn
