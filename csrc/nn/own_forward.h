// A model whose own code runs its forward in one call, such as a Python module: the
// code calls the segments, and between two of them lets the step's program go on, which
// gathers, frees and reduces. What lies between the calls of segments belongs to the
// segment that follows; the last segment is the code after the last call, with the
// loss.
//
// There is one autograd graph of that code, in which each called segment is one node
// with a graph of its own behind it (nn/detached_call.h). So its backward visits the
// segments last to first, values may skip segments, and nothing is traversed twice.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nn/segment.h"

namespace torchtitan::nn {

// The program that runs around such a model, as the model sees it.
class Progress {
 public:
  virtual ~Progress() = default;

  // Runs the program up to and including Forward of `segment`; those of segments
  // between were not called and do nothing. No effect where it already stands there.
  // Throws ValueError for a segment that lies behind.
  virtual void reach_forward(int64_t segment) = 0;

  // The same for Backward. `recompute` is called at the segment's Recompute, if any.
  // True if the program stands at BackwardInput instead: then the caller hands what is
  // left to do to at_backward_weight().
  virtual bool reach_backward(int64_t segment,
                              const std::function<void()>& recompute) = 0;

  // Runs `forward`, the code of a segment in grad mode. True if what autograd saves in
  // it may be taken away until the segment's backward: then the caller drops what else
  // holds that memory.
  virtual bool record(int64_t /*segment*/, const std::function<void()>& forward) {
    forward();
    return false;
  }
  // After that: further tensors that may be taken away. `owner` keeps the places alive.
  virtual void keep(int64_t /*segment*/, std::vector<at::Tensor*> /*places*/,
                    std::shared_ptr<void> /*owner*/) {}

  // `weight` is called at BackwardWeight of the segment, for the microbatch whose
  // backward runs now.
  virtual void at_backward_weight(int64_t segment, std::function<void()> weight) = 0;
};

// Sum of the loss over one microbatch, one number, with its graph where grad mode is
// on. Called at Forward of the first segment of a stage; `stage` is its position among
// those of this rank, 0 for a whole model. A stage before the last one gives its hidden
// states instead, one tensor; one after the first finds in `values` those of the stage
// before it under the name kHidden, beside the batch.
using OwnForward = std::function<at::Tensor(
    const std::map<std::string, at::Tensor>& values, int64_t stage, Progress*)>;

inline constexpr const char* kHidden = "h";

// A segment of such a model: a name and the parameters that it uses.
class CalledSegment final : public Segment {
 public:
  CalledSegment(std::string name, std::vector<ParameterRef> parameters);

  // All throw: the model's own code runs it.
  TensorList forward(const TensorList& inputs, const TensorList& parameters,
                     std::unique_ptr<Saved>* saved) override;
  TensorList backward(std::unique_ptr<Saved> saved, const TensorList& output_gradients,
                      const TensorList& parameters) override;
  TensorList backward_input(std::unique_ptr<Saved> saved,
                            const TensorList& output_gradients,
                            const TensorList& parameters,
                            std::unique_ptr<Saved>* rest) override;
  void backward_weight(std::unique_ptr<Saved> rest,
                       const TensorList& parameters) override;
  // None: what the model's own code computes is not known before it runs.
  Flops flops(const TensorList& inputs, const TensorList& parameters) const override;
};

}  // namespace torchtitan::nn
