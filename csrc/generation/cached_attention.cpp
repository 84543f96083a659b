// Attention through a KeyValueCache (key_value_cache.h).
#include <ATen/ops/zeros.h>

#include "generation/key_value_cache.h"
#include "ops/attention.h"

// Shape letters as in the header; H query heads of this rank, R = H / G.
namespace torchtitan::generation {
namespace {

class CachedAttention final : public nn::AttentionKernel {
 public:
  CachedAttention(std::shared_ptr<KeyValueCache> cache, int64_t layer)
      : cache_(std::move(cache)), layer_(layer), of_prompts_(nn::local_attention()) {
    TORCH_CHECK_VALUE(layer < cache_->shape().layers, "cached_attention: layer ", layer,
                      " of a cache with ", cache_->shape().layers);
  }

  int64_t ranks() const override { return 1; }

  std::shared_ptr<const AttentionKernel> of_layer(int64_t layer) const override {
    return std::make_shared<CachedAttention>(cache_, layer);
  }

  nn::TokenPlaces places(int64_t tokens, const at::Tensor& document_starts,
                         at::Device /*device*/) const override {
    const auto& own = cache_->positions();
    TORCH_CHECK_VALUE(own.defined() && own.size(0) == tokens,
                      "cached_attention: the cache expects another number of tokens "
                      "than ",
                      tokens);
    return {own.unsqueeze(0), own, document_starts};
  }

  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const nn::TokenPlaces& places) const override {
    if (!cache_->reads_prompts()) return of_last_tokens(q, k, v);
    cache_->write(layer_, k, v);
    return of_prompts_->attend(q, k, v, places);
  }

  Result forward(const Operands& x, const nn::TokenPlaces& places) const override {
    if (!cache_->reads_prompts()) return {of_last_tokens(x.q, x.k, x.v), {}};
    cache_->write(layer_, x.k, x.v);
    return of_prompts_->forward(x, places);
  }

  Operands backward(const Operands& /*x*/, const nn::TokenPlaces& /*places*/,
                    const Result& /*result*/,
                    const at::Tensor& /*d_o*/) const override {
    TORCH_CHECK(false,
                "cached_attention: a model that reads through a cache has no "
                "backward");
  }

  std::vector<plan::Exchange> forward_exchanges(
      const nn::AttentionSizes& /*sizes*/) const override {
    return {};
  }
  std::vector<plan::Exchange> backward_exchanges(
      const nn::AttentionSizes& /*sizes*/) const override {
    return {};
  }

 private:
  // q [1, B and padding, H, D], k and v [1, ..., G, D] -> [1, B and padding, H, D]
  at::Tensor of_last_tokens(const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v) const {
    const int64_t rows = cache_->rows(), groups = k.size(2);
    const auto by_row = [&](const at::Tensor& x) {
      return x.select(0, 0).narrow(0, 0, rows);
    };
    cache_->write_last(layer_, by_row(k), by_row(v));
    // The R heads that share a key head stand where tokens of a sequence would: all of
    // them see the same keys, and no key is copied for each.
    const auto q_BRGD = by_row(q).unflatten(1, {groups, -1}).transpose(1, 2);
    const auto o_BRGD = ops::attention(q_BRGD, cache_->keys(layer_),
                                       cache_->values(layer_), cache_->visible());
    const auto o_BHD = o_BRGD.transpose(1, 2).reshape({rows, q.size(2), q.size(3)});
    if (rows == q.size(1)) return o_BHD.unsqueeze(0);
    const auto padded = at::zeros(q.sizes(), q.options());
    by_row(padded).copy_(o_BHD);
    return padded;
  }

  std::shared_ptr<KeyValueCache> cache_;
  int64_t layer_;
  std::shared_ptr<const nn::AttentionKernel> of_prompts_;
};

}  // namespace

std::shared_ptr<nn::AttentionKernel> cached_attention(
    const std::shared_ptr<KeyValueCache>& cache) {
  return std::make_shared<CachedAttention>(cache, 0);
}

}  // namespace torchtitan::generation
