// What each segment of a model computes and how many bytes it needs, found by running
// it on meta tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "nn/model.h"
#include "nn/parameter_group.h"
#include "plan/step_shape.h"

namespace torchtitan::nn {

// `shape` with the flops, exchanges and bytes of every segment (inputs, outputs, saved,
// temporaries of forward and backward, the same of its halves, and where it runs again,
// what it keeps) and constant_bytes, which counts the constants
// of the model and the tensors of the batch that are not inputs of the first segment.
// Nothing is allocated or computed.
//   model    built on meta, with the segments and groups of `shape`; a tensor axis of
//            it is fake
//   options  dtypes of parameters and gradients; the device is not looked at
//   batch    one microbatch by name, meta tensors
// Throws ValueError if the model lacks a value that a segment reads, or has no "loss".
plan::StepShape measure(const Model& model, const GroupOptions& options,
                        const std::map<std::string, at::Tensor>& batch,
                        plan::StepShape shape);

}  // namespace torchtitan::nn
