// How a block's queries meet the keys of their sequences. The kernel knows which tokens
// of each sequence this rank has and where the others are; a block asks it for
// positions and attention and does not know whether a sequence is shared by ranks.
//
// Shape letters: B rows, S tokens of a whole sequence, s = S / ranks() of this rank, H
// query heads, G key heads (H divisible by G), D head dim.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>

#include "nn/segment.h"

namespace torchtitan::nn {

// Where tokens are, and what a query sees: the keys of its sequence that are not after
// it and, with documents, not before the first token of its document.
struct TokenPlaces {
  at::Tensor positions;        // [ranks, s] int64, of each rank's tokens
  at::Tensor own;              // [s], this rank's row
  at::Tensor document_starts;  // [B, S] int64 by position, or undefined
};

// Of a call, for its costs.
struct AttentionSizes {
  int64_t rows;
  int64_t tokens;       // of this rank, in a row
  int64_t query_width;  // H D
  int64_t key_width;    // G D
  at::TensorOptions options;
};

class AttentionKernel : public std::enable_shared_from_this<AttentionKernel> {
 public:
  virtual ~AttentionKernel() = default;

  // Ranks that share each sequence.
  virtual int64_t ranks() const = 0;

  // What block `layer` asks: the kernel itself, unless it keeps something by layer.
  virtual std::shared_ptr<const AttentionKernel> of_layer(int64_t /*layer*/) const {
    return shared_from_this();
  }

  // Of sequences of which this rank has `tokens` tokens, on the device of the starts or
  // else of `device`. Throws ValueError for a length that cannot be dealt out.
  virtual TokenPlaces places(int64_t tokens, const at::Tensor& document_starts,
                             at::Device device) const = 0;

  // This rank's tokens of "input" and "labels" [B, S] of a batch; the rest as it is.
  std::map<std::string, at::Tensor> deal(std::map<std::string, at::Tensor> batch) const;

  // Differentiable; q [B, s, H, D], k and v [B, s, G, D], rotated -> [B, s, H, D].
  virtual at::Tensor attend(const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const TokenPlaces& places) const = 0;

  // The same by hand, not seen by autograd; all tensors are contiguous.
  struct Operands {
    at::Tensor q, k, v;
  };
  struct Result {
    at::Tensor o;    // [B, s, H, D]
    at::Tensor lse;  // for backward; float32 or wider
  };
  // q, k and v as forward and backward take them, which a kernel may first exchange;
  // those that are undefined, on all ranks, stay so.
  virtual Operands enter(Operands projected) const { return projected; }
  virtual Result forward(const Operands& operands, const TokenPlaces& places) const = 0;
  // Gradients of what was given to enter(). They may take the places of d_o and of the
  // operands.
  virtual Operands backward(const Operands& operands, const TokenPlaces& places,
                            const Result& result, const at::Tensor& d_o) const = 0;

  // Of enter() for operands of `width` together, of a forward and of a backward.
  virtual std::vector<plan::Exchange> enter_exchanges(const AttentionSizes& /*sizes*/,
                                                      int64_t /*width*/) const {
    return {};
  }
  virtual std::vector<plan::Exchange> forward_exchanges(
      const AttentionSizes& sizes) const = 0;
  virtual std::vector<plan::Exchange> backward_exchanges(
      const AttentionSizes& sizes) const = 0;
};

// Whole sequences on this rank.
std::shared_ptr<AttentionKernel> local_attention();

}  // namespace torchtitan::nn
