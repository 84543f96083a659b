// Sequence for heads (Jacobs et al. 2023): an exchange gives each rank all tokens of
// some of the heads, with the tokens of rank 0 first, then those of rank 1, ...;
// another one brings the outputs back to their tokens.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "base/errors.h"
#include "parallel/context/over_keys.h"
#include "parallel/context/shared_attention.h"

namespace torchtitan::parallel::context {
namespace {

using nn::TensorList;

class UlyssesAttention final : public SharedAttention {
 public:
  using SharedAttention::SharedAttention;

  Operands enter(Operands x) const override {
    std::vector<at::Tensor*> places;
    TensorList given;
    for (auto* each : {&x.q, &x.k, &x.v}) {
      if (!each->defined()) continue;
      places.push_back(each);
      given.push_back(*each);
    }
    const auto here = to_heads(given);
    for (size_t i = 0; i < here.size(); ++i) *places[i] = here[i];
    return x;
  }

  // lse is that of this rank's heads.
  Result forward(const Operands& x, const nn::TokenPlaces& places) const override {
    const auto positions = places.positions.flatten();
    SumOverKeys sum(x.q, {positions, places.document_starts}, 1);
    sum.add(x.k, x.v, positions);
    const auto result = sum.result();
    return {to_tokens({result.o})[0], result.lse};
  }

  Operands backward(const Operands& x, const nn::TokenPlaces& places,
                    const Result& result, const at::Tensor& d_o) const override {
    const auto positions = places.positions.flatten();
    const auto here = to_heads({result.o, d_o});
    GradientOverKeys gradient(x.q, {positions, places.document_starts},
                              {here[0], result.lse}, here[1]);
    auto shape = x.k.sizes().vec();
    shape.insert(shape.begin(), 2);
    const auto d_kv = at::zeros(shape, wide_options(x.k));
    gradient.add(x.k, x.v, positions, d_kv);
    const auto dtype = x.k.scalar_type();
    const auto d = to_tokens(
        {gradient.dq(), d_kv.select(0, 0).to(dtype), d_kv.select(0, 1).to(dtype)});
    return {d[0], d[1], d[2]};
  }

  std::vector<plan::Exchange> enter_exchanges(const nn::AttentionSizes& sizes,
                                              int64_t width) const override {
    return {of(sizes.rows * sizes.tokens * width, sizes)};
  }

  std::vector<plan::Exchange> forward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    return {of(sizes.rows * sizes.tokens * sizes.query_width, sizes)};
  }

  std::vector<plan::Exchange> backward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    const int64_t tokens = sizes.rows * sizes.tokens;
    return {of(tokens * 2 * sizes.query_width, sizes),
            of(tokens * (sizes.query_width + 2 * sizes.key_width), sizes)};
  }

 private:
  plan::Exchange of(int64_t numel, const nn::AttentionSizes& sizes) const {
    return exchange("all_to_all", numel, sizes.options);
  }

  at::Tensor exchanged(const at::Tensor& in) const {
    const auto out = at::empty(in.sizes(), in.options());
    const std::vector<int64_t> one_row(static_cast<size_t>(ranks()), 1);
    group().all_to_all(out, in, one_row, one_row).wait();
    return out;
  }

  // [B, s, H, D] each -> [B, S, H / ranks, D], in one exchange
  TensorList to_heads(const TensorList& all) const {
    const auto& like = all[0];
    int64_t heads = 0;  // that each rank gets
    for (const auto& x : all) {
      base::check_value(x.size(2) % ranks() == 0,
                        "context_parallel_rotate_method 'ulysses': expected a number "
                        "of heads that ",
                        ranks(), " ranks divide, found ", x.size(2));
      heads += x.size(2) / ranks();
    }
    const int64_t rows = like.size(0), tokens = like.size(1), dim = like.size(3);
    const auto sent = at::empty({ranks(), rows, tokens, heads, dim}, like.options());
    int64_t first = 0;
    for (const auto& x : all) {
      const int64_t count = x.size(2) / ranks();
      sent.narrow(3, first, count)
          .copy_(x.unflatten(2, {ranks(), count}).permute({2, 0, 1, 3, 4}));
      first += count;
    }
    const auto received = exchanged(sent);
    TensorList here;
    first = 0;
    for (const auto& x : all) {
      const int64_t count = x.size(2) / ranks();
      here.push_back(at::empty({rows, ranks() * tokens, count, dim}, x.options()));
      here.back()
          .unflatten(1, {ranks(), tokens})
          .copy_(received.narrow(3, first, count).transpose(0, 1));
      first += count;
    }
    return here;
  }

  // and back
  TensorList to_tokens(const TensorList& all) const {
    const auto& like = all[0];
    int64_t heads = 0;
    for (const auto& x : all) heads += x.size(2);
    const int64_t rows = like.size(0), tokens = like.size(1) / ranks(),
                  dim = like.size(3);
    const auto sent = at::empty({ranks(), rows, tokens, heads, dim}, like.options());
    int64_t first = 0;
    for (const auto& x : all) {
      sent.narrow(3, first, x.size(2))
          .copy_(x.unflatten(1, {ranks(), tokens}).transpose(0, 1));
      first += x.size(2);
    }
    const auto received = exchanged(sent);
    TensorList back;
    first = 0;
    for (const auto& x : all) {
      const int64_t count = x.size(2);
      back.push_back(at::empty({rows, tokens, ranks() * count, dim}, x.options()));
      back.back()
          .unflatten(2, {ranks(), count})
          .copy_(received.narrow(3, first, count).permute({1, 2, 0, 3, 4}));
      first += count;
    }
    return back;
  }
};

}  // namespace

std::shared_ptr<nn::AttentionKernel> ulysses_attention(collectives::Group group,
                                                       Balance balance) {
  return std::make_shared<UlyssesAttention>(std::move(group), balance);
}

}  // namespace torchtitan::parallel::context
