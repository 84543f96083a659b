#include "nn/weight_products.h"

#include <optional>
#include <utility>

#include "ops/linear.h"

namespace torchtitan::nn {

class WeightProducts::Tokens {
 public:
  explicit Tokens(at::Tensor own) : own_(std::move(own)) {}

  void start(const TensorAxis& axis) {
    if (!gathered_) gathered_ = axis.start_gather(own_);
  }
  void set_whole() { gathered_ = Pending(own_); }
  at::Tensor wait() const { return gathered_.value().wait(); }

 private:
  at::Tensor own_;
  std::optional<Pending> gathered_;
};

WeightProducts::WeightProducts(TensorAxis axis, TensorList parameters)
    : axis_(std::move(axis)), parameters_(std::move(parameters)), are_kept_(false) {}

WeightProducts::WeightProducts(TensorAxis axis)
    : axis_(std::move(axis)), are_kept_(true) {}

WeightProducts::TokensPointer WeightProducts::gather(const at::Tensor& x) const {
  auto tokens = std::make_shared<Tokens>(x);
  if (!are_kept_) tokens->start(axis_);
  return tokens;
}

WeightProducts::TokensPointer WeightProducts::whole(const at::Tensor& x) const {
  auto tokens = std::make_shared<Tokens>(x);
  tokens->set_whole();
  return tokens;
}

void WeightProducts::add(size_t slot, const at::Tensor& dy, const TokensPointer& x) {
  if (are_kept_) return products_.push_back({slot, dy, x});
  ops::linear_backward_weight_(parameters_[slot].grad(), dy, x->wait());
}

void WeightProducts::run(const TensorList& parameters) {
  for (size_t i = 0; i < products_.size(); ++i) {
    auto [slot, dy, x] = std::exchange(products_[i], {});
    x->start(axis_);
    // The next one's tokens travel during this product.
    if (i + 1 < products_.size()) products_[i + 1].x->start(axis_);
    ops::linear_backward_weight_(parameters[slot].grad(), dy, x->wait());
  }
  products_.clear();
}

}  // namespace torchtitan::nn
