// Ring attention (Liu et al. 2023): keys and values of each rank go once around, and so
// do the sums of their gradients, one hop behind the keys.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "collectives/ring.h"
#include "parallel/context/over_keys.h"
#include "parallel/context/packed.h"
#include "parallel/context/shared_attention.h"

namespace torchtitan::parallel::context {
namespace {

using collectives::Hop;
using collectives::pass_on;

class RingAttention final : public SharedAttention {
 public:
  using SharedAttention::SharedAttention;

  Result forward(const Operands& x, const nn::TokenPlaces& places) const override {
    SumOverKeys sum(x.q, {places.own, places.document_starts}, ranks());
    auto kv = packed(x);
    for (int64_t hops = 0; hops < ranks(); ++hops) {
      at::Tensor next;
      const auto hop = start_hop(kv, hops, next);
      sum.add(kv.select(0, 0), kv.select(0, 1),
              places.positions.select(0, source(hops)));
      hop.wait();
      kv = next;
    }
    return sum.result();
  }

  Operands backward(const Operands& x, const nn::TokenPlaces& places,
                    const Result& result, const at::Tensor& d_o) const override {
    GradientOverKeys gradient(x.q, {places.own, places.document_starts}, result, d_o);
    auto kv = packed(x);
    const auto own = at::zeros(kv.sizes(), wide_options(kv));
    at::Tensor travelling;  // gradients that go on with the keys of the last hop
    for (int64_t hops = 0; hops < ranks(); ++hops) {
      // In this order on every rank: pairs of ranks may meet in order only.
      Hop gradient_hop;
      at::Tensor incoming, next;
      if (hops > 1) {
        incoming = at::empty_like(own);
        gradient_hop = pass_on(group(), travelling, incoming);
      }
      const auto hop = start_hop(kv, hops, next);
      const auto here = hops == 0 ? own : at::zeros_like(own);
      gradient.add(kv.select(0, 0), kv.select(0, 1),
                   places.positions.select(0, source(hops)), here);
      hop.wait();
      gradient_hop.wait();
      if (hops > 1) here.add_(incoming);
      if (hops > 0) travelling = here;
      kv = next;
    }
    const auto others = at::empty_like(own);  // of this rank's keys, on all other ranks
    pass_on(group(), travelling, others).wait();
    own.add_(others);
    return unpacked(gradient.dq(), own);
  }

  std::vector<plan::Exchange> forward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    std::vector<plan::Exchange> all;
    note_hops(all, sizes, sizes.options);
    return all;
  }

  std::vector<plan::Exchange> backward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    std::vector<plan::Exchange> all;
    note_hops(all, sizes, sizes.options);
    note_hops(all, sizes, wide_options(at::empty({0}, sizes.options)));
    return all;
  }

 private:
  // The last keys go no further.
  Hop start_hop(const at::Tensor& kv, int64_t hops, at::Tensor& next) const {
    if (hops + 1 == ranks()) return {};
    next = at::empty_like(kv);
    return pass_on(group(), kv, next);
  }

  void note_hops(std::vector<plan::Exchange>& all, const nn::AttentionSizes& sizes,
                 const at::TensorOptions& options) const {
    for (int64_t hop = 1; hop < ranks(); ++hop) {
      for (const char* verb : {"send", "recv"}) {
        all.push_back(exchange(verb, packed_numel(sizes), options));
      }
    }
  }
};

}  // namespace

std::shared_ptr<nn::AttentionKernel> ring_attention(collectives::Group group,
                                                    Balance balance) {
  return std::make_shared<RingAttention>(std::move(group), balance);
}

}  // namespace torchtitan::parallel::context
