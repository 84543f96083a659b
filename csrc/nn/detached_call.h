// A call of a segment from a model's own code: a graph of its own, seen by the caller's
// graph as one node. See nn/own_forward.h.
#pragma once

#include <functional>

#include "nn/own_forward.h"

namespace torchtitan::nn {

// Differentiable in its tensors when grad mode is on.
using TensorFunction = std::function<TensorList(const TensorList&)>;

// Makes what the graph of a call has not saved, from the inputs of the call.
using Again = std::function<void(const TensorList&)>;

// Runs `function` as `segment` and returns its results.
//   inputs   may have a graph (the caller's) and may be the same tensor twice
//   returns  the results under the caller's graph, sharing memory with the function's
//   again    empty, or called at the segment's Recompute in grad mode
// In grad mode, backward through the results reaches the segment's Backward in the
// program first, then adds the gradients of parameters, at once or, where the program
// divides the backward, at its second half (nn/split_backward.h), and hands on those of
// the inputs. It throws ValueError if one is to be recomputed from that was changed in
// place in the meantime. On return the program stands at the next segment's Forward.
TensorList detached_call(int64_t segment, const TensorList& inputs,
                         const TensorFunction& function, Again again,
                         Progress& progress);

}  // namespace torchtitan::nn
