// A call of a segment from a model's own code: a graph of its own, seen by the caller's
// graph as one node. See nn/own_forward.h.
#pragma once

#include <functional>

#include "nn/own_forward.h"

namespace torchtitan::nn {

// Differentiable in its tensors when grad mode is on. It may be called a second time,
// to recompute; it must then give the same values.
using TensorFunction = std::function<TensorList(const TensorList&)>;

// Runs `function` as `segment` and returns its results.
//   inputs   may have a graph (the caller's) and may be the same tensor twice
//   returns  the results under the caller's graph, sharing memory with the function's
// In grad mode, backward through the results reaches the segment's Backward in the
// program first, then adds the gradients of parameters and hands on those of the
// inputs. With recomputation only the inputs are kept; it throws ValueError if one was
// changed in place in the meantime. On return the program stands at the next segment's
// Forward.
TensorList detached_call(int64_t segment, const TensorList& inputs,
                         TensorFunction function, Progress& progress);

}  // namespace torchtitan::nn
