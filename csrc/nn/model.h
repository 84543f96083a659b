// A model: a chain of segments and the parameter groups that they use. It holds no
// parameter memory; parallel/ decides where that lives.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nn/own_forward.h"
#include "nn/parameter.h"
#include "nn/segment.h"

namespace torchtitan::nn {

struct Model {
  std::vector<ParameterGroupSpec> groups;
  std::vector<std::shared_ptr<Segment>> segments;
  TensorList constants;  // tables that the segments read and share
  // Where the model's own code calls the segments, which then only name their parts;
  // empty where the step runs them one after another.
  OwnForward own_forward;
};

// Runs all segments as one differentiable function of parameters and values, as a plain
// module would (no segment boundaries, gradients reach the tensors given).
//   parameters  by group and slot
//   values      the inputs by name; returned with the outputs of all segments added
// Throws ValueError for a model with a segment that has no differentiable form.
std::map<std::string, at::Tensor> forward(const Model& model,
                                          const std::vector<TensorList>& parameters,
                                          std::map<std::string, at::Tensor> values);

}  // namespace torchtitan::nn
