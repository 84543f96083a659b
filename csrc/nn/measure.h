// What each segment of a model computes and how many bytes it needs, found by running
// it on meta tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "nn/model.h"
#include "nn/parameter_group.h"
#include "nn/stage_transport.h"
#include "plan/step_shape.h"

namespace torchtitan::nn {

// `shape`, of a rank's part of a model, with the flops, exchanges and bytes of every
// segment (inputs, outputs, saved, temporaries of forward and backward, the same of its
// halves, where it runs again, what it keeps, and where it is offloaded, what moves),
// the bytes that stages receive, and constant_bytes, which counts the constants of the
// model and the tensors of the batch that are not inputs of the first segment. Nothing
// is allocated or computed. A value that crosses several boundaries of stages has the
// same shape at all of them.
//   whole    built on meta; a tensor axis of it is fake
//   part     the same, with the segments and groups of `shape`
//   stages   of the part; with none the part is the whole
//   options  dtypes of parameters and gradients; the device is not looked at
//   batch    one microbatch by name, meta tensors
// Throws ValueError if the model lacks a value that a segment reads, or has no "loss".
plan::StepShape measure(const Model& whole, const Model& part, const Stages& stages,
                        const GroupOptions& options,
                        const std::map<std::string, at::Tensor>& batch,
                        plan::StepShape shape);

}  // namespace torchtitan::nn
