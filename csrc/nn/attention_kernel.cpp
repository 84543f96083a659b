#include "nn/attention_kernel.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "ops/attention.h"
#include "ops/fused.h"
#include "ops/fused_attention.h"

namespace torchtitan::nn {
namespace {

namespace fused = ops::fused;

class LocalAttention final : public AttentionKernel {
 public:
  int64_t ranks() const override { return 1; }

  TokenPlaces places(int64_t tokens, const at::Tensor& document_starts,
                     at::Device device) const override {
    // Made so that on meta it is counted like any other memory.
    auto own = at::empty({tokens}, at::TensorOptions().dtype(at::kLong).device(device));
    if (!own.is_meta()) at::arange_out(own, tokens);
    return {own.unsqueeze(0), own, document_starts};
  }

  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const TokenPlaces& places) const override {
    if (!places.document_starts.defined()) return ops::attention(q, k, v, {});
    return ops::attention(
        q, k, v, ops::visible_keys(places.own, places.own, places.document_starts));
  }

  Result forward(const Operands& x, const TokenPlaces& places) const override {
    Result result = {
        at::empty_like(x.q),
        at::empty({x.q.size(0), x.q.size(2), x.q.size(1)}, fused::wide_options(x.q))};
    fused::attention(x.q, x.k, x.v, {places.own, places.document_starts}, places.own,
                     fused::Part::kOnly, {}, result.o, result.lse);
    return result;
  }

  // In the places of d_o, k and v.
  Operands backward(const Operands& x, const TokenPlaces& places, const Result& result,
                    const at::Tensor& d_o) const override {
    const auto delta = fused::attention_delta(result.o, d_o);
    fused::attention_backward(x.q, x.k, x.v, {places.own, places.document_starts},
                              places.own, result.lse, delta, d_o, {d_o, x.k, x.v});
    return {d_o, x.k, x.v};
  }

  std::vector<plan::Exchange> forward_exchanges(
      const AttentionSizes& /*sizes*/) const override {
    return {};
  }
  std::vector<plan::Exchange> backward_exchanges(
      const AttentionSizes& /*sizes*/) const override {
    return {};
  }
};

}  // namespace

std::map<std::string, at::Tensor> AttentionKernel::deal(
    std::map<std::string, at::Tensor> batch) const {
  if (ranks() == 1) return batch;
  const auto starts = batch.find("document_starts");
  for (const char* name : {"input", "labels"}) {
    const auto found = batch.find(name);
    if (found == batch.end()) continue;
    auto& tokens = found->second;
    TORCH_CHECK_VALUE(tokens.dim() >= 2 && tokens.size(1) % ranks() == 0, "deal: '",
                      name, "' of shape ", tokens.sizes(), " cannot be divided among ",
                      ranks(), " ranks");
    const auto here =
        places(tokens.size(1) / ranks(),
               starts == batch.end() ? at::Tensor() : starts->second, tokens.device());
    tokens = tokens.index_select(1, here.own);
  }
  return batch;
}

std::shared_ptr<AttentionKernel> local_attention() {
  return std::make_shared<LocalAttention>();
}

}  // namespace torchtitan::nn
