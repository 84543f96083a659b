// The products that end in gradients of weights, in a backward that may be divided in
// two halves: each is done as soon as it is told, or kept for the second half.
#pragma once

#include <memory>
#include <vector>

#include "nn/segment.h"
#include "nn/tensor_axis.h"

namespace torchtitan::nn {

class WeightProducts final : public Segment::Saved {
 public:
  // x [N, I] of all ranks of the axis, on its way or still to be gathered.
  class Tokens;
  using TokensPointer = std::shared_ptr<Tokens>;

  // Products are added into the .grad of these parameters at once.
  WeightProducts(TensorAxis axis, TensorList parameters);
  // Products are kept, in run() added into the .grad of the parameters given there.
  explicit WeightProducts(TensorAxis axis);

  bool are_kept() const { return are_kept_; }

  // This rank's x [n, I] for products to come: the gather starts now, or where products
  // are kept, shortly before the first of them.
  TokensPointer gather(const at::Tensor& x) const;
  TokensPointer whole(const at::Tensor& x) const;

  // .grad [O, I] of parameter `slot` += dy [N, O]^T x. What is kept must not change.
  void add(size_t slot, const at::Tensor& dy, const TokensPointer& x);

  // Those that were kept, in their order; each is freed when it is done.
  void run(const TensorList& parameters);

 private:
  struct Product {
    size_t slot;
    at::Tensor dy;
    TokensPointer x;
  };

  TensorAxis axis_;
  TensorList parameters_;
  bool are_kept_;
  std::vector<Product> products_;
};

}  // namespace torchtitan::nn
