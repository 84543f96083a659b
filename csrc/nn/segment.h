// A segment: a part of a model with a forward and a backward of its own. The step runs
// one autograd graph (or one hand-written pair) per segment, so that it can decide
// between any two of them when to gather, recompute, send or reduce.
//
// Values travel between segments by name ("input", "labels", "h", "loss"); parameters
// are arguments: a segment does not own where they live.
#pragma once

#include <ATen/core/Tensor.h>

#include "plan/step_shape.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace torchtitan::nn {

using TensorList = std::vector<at::Tensor>;

// The parameter `slot` of parameter group `group` of the model.
struct ParameterRef {
  int64_t group;
  int64_t slot;
};

// Floating point operations; a multiply-add counts two.
struct Flops {
  int64_t forward = 0;
  int64_t backward = 0;   // without running forward again
  int64_t recompute = 0;  // of running it again for what it saves
  int64_t weight = 0;     // of those of backward: of its second half
};

// A microbatch as a segment sees it.
struct BatchShape {
  int64_t rows;
  int64_t length;  // tokens of a row
  at::ScalarType dtype;
};

// An operation of a forward whose result its backward needs.
struct Operation {
  enum class Kind { kProduct, kAttention };

  std::string name;
  Kind kind;
  std::optional<size_t> weight;  // slot of a product's among the segment's parameters
  bool is_summed_over_ranks;     // its result went through a reduce-scatter
  int64_t bytes;                 // of the result, on this rank
  int64_t flops;                 // of doing it again
};

// Collectives that a segment runs by itself, in their order.
struct Exchanges {
  std::vector<plan::Exchange> forward = {};
  std::vector<plan::Exchange> backward = {};
  std::vector<plan::Exchange> recompute = {};
  // Of the halves of backward.
  std::vector<plan::Exchange> backward_input = {};
  std::vector<plan::Exchange> backward_weight = {};
};

class Segment {
 public:
  // What backward needs of one forward. Dropped after backward.
  class Saved {
   public:
    virtual ~Saved() = default;
    // Of its tensors, those that the forward made or was given by the segment before:
    // no parameter, no table, nothing of the batch. Some may be undefined. Between
    // forward and backward they may be taken away and equal ones put in their places.
    virtual std::vector<at::Tensor*> tensors() { return {}; }
    // What autograd saved is recorded elsewhere (nn/host_store.h) and may be taken
    // away: drops what else holds that memory.
    virtual void let_go() {}
  };

  Segment(std::string name, std::vector<std::string> inputs,
          std::vector<std::string> outputs, std::vector<ParameterRef> parameters);
  virtual ~Segment() = default;

  const std::string& name() const { return name_; }
  const std::vector<std::string>& inputs() const { return inputs_; }
  const std::vector<std::string>& outputs() const { return outputs_; }
  const std::vector<ParameterRef>& parameters() const { return parameters_; }
  // Group g of the model is group new_index[g] from now on.
  void renumber_groups(const std::vector<int64_t>& new_index);

  // Outputs, in the order of outputs(). With `saved` null nothing is kept (evaluation,
  // or a forward that will be run again before its backward).
  virtual TensorList forward(const TensorList& inputs, const TensorList& parameters,
                             std::unique_ptr<Saved>* saved) = 0;

  // Activation checkpointing: a forward that will be run again before its backward,
  // and what that forward would have saved, from the same inputs and parameters.
  // *kept is what the first leaves for the second, null unless keep() asked for it.
  // A segment may leave out what only its outputs need.
  virtual TensorList forward_for_recompute(const TensorList& inputs,
                                           const TensorList& parameters,
                                           std::unique_ptr<Saved>* /*kept*/) {
    return forward(inputs, parameters, nullptr);
  }
  virtual void recompute(const TensorList& inputs, const TensorList& parameters,
                         std::unique_ptr<Saved> /*kept*/,
                         std::unique_ptr<Saved>* saved) {
    forward(inputs, parameters, saved);
  }

  // In the order of the forward; none where a segment runs again as a whole.
  virtual std::vector<Operation> operations(const BatchShape& /*batch*/) const {
    return {};
  }
  // Whose results forward_for_recompute() keeps, by operation; none is all false. Also
  // what flops() and exchanges() say of a recomputation depends on it.
  void keep(std::vector<bool> kept) { kept_ = std::move(kept); }
  bool keeps(size_t operation) const {
    return operation < kept_.size() && kept_[operation];
  }

  // Gradients of the inputs, undefined where there is none. Adds the gradient of each
  // parameter into its .grad, which is preset. An undefined output gradient is zero.
  virtual TensorList backward(std::unique_ptr<Saved> saved,
                              const TensorList& output_gradients,
                              const TensorList& parameters) = 0;

  // The same in two halves, between which other segments may run: the gradients of the
  // inputs first, and in *rest what those of the parameters need, null where nothing is
  // left to do. The .grad of a parameter may be added to in the first half already
  // where its gradient costs no product (a norm's) or is there before.
  // Tensors that came in and go out may be part of the rest: nobody may write to them
  // before the second half has ended.
  virtual TensorList backward_input(std::unique_ptr<Saved> saved,
                                    const TensorList& output_gradients,
                                    const TensorList& parameters,
                                    std::unique_ptr<Saved>* rest) = 0;
  // Adds the other gradients of the parameters into their .grad, which is preset.
  virtual void backward_weight(std::unique_ptr<Saved> rest,
                               const TensorList& parameters) = 0;
  // Whether the second half may read values of parameters: those that a function of
  // theirs has saved. They are gathered for it.
  virtual bool weight_half_reads_parameters() const { return true; }

  // Of the matrix products with tensors of these shapes (meta will do). Attention is
  // counted without the causal saving and without what its backward computes again, as
  // flops are in reports of utilization (Chowdhery et al. 2022, appendix B).
  virtual Flops flops(const TensorList& inputs, const TensorList& parameters) const = 0;

  // In training, with tensors of these shapes.
  virtual Exchanges exchanges(const TensorList& /*inputs*/,
                              const TensorList& /*parameters*/) const {
    return {};
  }

 private:
  std::string name_;
  std::vector<std::string> inputs_;
  std::vector<std::string> outputs_;
  std::vector<ParameterRef> parameters_;
  std::vector<bool> kept_;
};

// A segment written as one differentiable function; autograd makes its backward.
class AutogradSegment : public Segment {
 public:
  using Segment::Segment;

  TensorList forward(const TensorList& inputs, const TensorList& parameters,
                     std::unique_ptr<Saved>* saved) override;
  TensorList backward(std::unique_ptr<Saved> saved, const TensorList& output_gradients,
                      const TensorList& parameters) override;
  // Divided as in nn/split_backward.h.
  TensorList backward_input(std::unique_ptr<Saved> saved,
                            const TensorList& output_gradients,
                            const TensorList& parameters,
                            std::unique_ptr<Saved>* rest) override;
  void backward_weight(std::unique_ptr<Saved> rest,
                       const TensorList& parameters) override;

  // The function itself, differentiable when grad mode is on.
  virtual TensorList compute(const TensorList& inputs,
                             const TensorList& parameters) const = 0;
};

}  // namespace torchtitan::nn
