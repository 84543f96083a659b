#include "nn/exchanges.h"

#include <ATen/ops/empty.h>

namespace torchtitan::nn {
namespace {

// A tensor of these sizes without memory, whose numbers nobody may read.
at::Tensor outline(const std::vector<int64_t>& sizes,
                   const at::TensorOptions& options) {
  auto tensor = at::empty({0}, options);
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return tensor;
}

}  // namespace

plan::StepShape with_exchanges(
    const Model& part, const Stages& stages, const GroupOptions& options,
    const std::map<std::string, std::vector<int64_t>>& hidden,
    const std::vector<int64_t>& tokens, plan::StepShape shape) {
  TORCH_CHECK_VALUE(shape.segments.size() == part.segments.size(),
                    "with_exchanges: the shape has ", shape.segments.size(),
                    " segments, the part ", part.segments.size());
  const at::TensorOptions on_device(options.device);
  const auto value = [&](const std::string& name) {
    const auto found = hidden.find(name);
    return found == hidden.end()
               ? outline(tokens, on_device.dtype(at::kLong))
               : outline(found->second, on_device.dtype(options.compute_dtype));
  };
  const auto bytes = [&](const std::vector<std::string>& names) {
    int64_t sum = 0;
    for (const auto& name : names) {
      TORCH_CHECK_VALUE(hidden.contains(name), "with_exchanges: the size of '", name,
                        "', which travels between stages, is not known");
      sum += static_cast<int64_t>(value(name).nbytes());
    }
    return sum;
  };
  for (size_t s = 0; s < part.segments.size(); ++s) {
    const auto& segment = *part.segments[s];
    TensorList inputs, leaves;
    for (const auto& name : segment.inputs()) inputs.push_back(value(name));
    for (const auto& [group, slot] : segment.parameters()) {
      const auto& spec = part.groups.at(static_cast<size_t>(group))
                             .parameters.at(static_cast<size_t>(slot));
      leaves.push_back(outline(spec.shape, on_device.dtype(options.compute_dtype)));
      leaves.back().mutable_grad() =
          outline(spec.shape, on_device.dtype(options.reduce_dtype));
    }
    auto exchanges = segment.exchanges(inputs, leaves);
    auto& own = shape.segments[s];
    own.forward_exchanges = std::move(exchanges.forward);
    own.recompute_exchanges = std::move(exchanges.recompute);
    own.backward_exchanges = std::move(exchanges.backward);
    own.backward_input_exchanges = std::move(exchanges.backward_input);
    own.backward_weight_exchanges = std::move(exchanges.backward_weight);
  }
  for (size_t i = 0; i < stages.shapes.size(); ++i) {
    auto& stage = shape.stages.at(i);
    if (stage.receives) stage.received_bytes = bytes(stages.inputs[i]);
    if (stage.sends) {
      const auto last = static_cast<size_t>(stage.end() - 1);
      shape.segments.at(last).output_bytes = bytes(stages.outputs[i]);
    }
  }
  return shape;
}

}  // namespace torchtitan::nn
