// Keys and values of all ranks gathered at once; this rank's own are used meanwhile.
// Backward gathers them again rather than keeping them.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "parallel/context/over_keys.h"
#include "parallel/context/packed.h"
#include "parallel/context/shared_attention.h"

namespace torchtitan::parallel::context {
namespace {

class GatherAttention final : public SharedAttention {
 public:
  using SharedAttention::SharedAttention;

  Result forward(const Operands& x, const nn::TokenPlaces& places) const override {
    SumOverKeys sum(x.q, {places.own, places.document_starts}, ranks());
    const auto visit = [&](const at::Tensor& kv, int64_t from) {
      sum.add(kv.select(0, 0), kv.select(0, 1), places.positions.select(0, from));
    };
    visit_all(packed(x), visit);
    return sum.result();
  }

  Operands backward(const Operands& x, const nn::TokenPlaces& places,
                    const Result& result, const at::Tensor& d_o) const override {
    GradientOverKeys gradient(x.q, {places.own, places.document_starts}, result, d_o);
    const auto kv = packed(x);
    const auto wide = wide_options(kv);
    const auto all = at::zeros(of_all_ranks(kv), wide);
    visit_all(kv, [&](const at::Tensor& other, int64_t from) {
      gradient.add(other.select(0, 0), other.select(0, 1),
                   places.positions.select(0, from), all.select(0, from));
    });
    const auto own = at::empty(kv.sizes(), wide);
    group().reduce_scatter(own, all).wait();
    return unpacked(gradient.dq(), own);
  }

  std::vector<plan::Exchange> forward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    return {exchange("all_gather", packed_numel(sizes) * ranks(), sizes.options)};
  }

  std::vector<plan::Exchange> backward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    const int64_t numel = packed_numel(sizes) * ranks();
    return {
        exchange("all_gather", numel, sizes.options),
        exchange("reduce_scatter", numel, wide_options(at::empty({0}, sizes.options)))};
  }

 private:
  std::vector<int64_t> of_all_ranks(const at::Tensor& kv) const {
    auto shape = kv.sizes().vec();
    shape.insert(shape.begin(), ranks());
    return shape;
  }

  template <class Visit>
  void visit_all(const at::Tensor& kv, const Visit& visit) const {
    const auto all = at::empty(of_all_ranks(kv), kv.options());
    const auto gathered = group().all_gather(all, kv);
    visit(kv, rank());
    gathered.wait();
    for (int64_t hops = 1; hops < ranks(); ++hops) {
      visit(all.select(0, source(hops)), source(hops));
    }
  }
};

}  // namespace

std::shared_ptr<nn::AttentionKernel> gather_attention(collectives::Group group,
                                                      Balance balance) {
  return std::make_shared<GatherAttention>(std::move(group), balance);
}

}  // namespace torchtitan::parallel::context
