// Every mistake in how ring attention puts together what it has found over one rank's
// keys after another (online softmax) is noticed.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cmath>

#include "ops/attention.h"
#include "ops/fused_attention.h"
#include "parallel/context/packed.h"
#include "train/differences.h"
#include "train/mistakes.h"

namespace torchtitan::train::testing {
namespace {

using collectives::Group;
using ops::AttentionPart;
using ops::fused::Part;
using parallel::context::Method;

// Forward of a ring's attention with all keys at hand. The sum is that of the kernel of
// ops/fused_attention.h, which merges as it goes, or of tensor operations and `merge`.
struct Summing {
  // Before each block of keys but the first.
  std::function<void(const at::Tensor& sum, const at::Tensor& lse)> between = {};
  std::function<Part(Part)> part = [](Part part) { return part; };
  std::function<AttentionPart(const AttentionPart&, const AttentionPart&)> merge = {};
};

class SummingKernel final : public nn::AttentionKernel {
 public:
  SummingKernel(std::shared_ptr<AttentionKernel> ring, Group axis, Summing summing)
      : ring_(std::move(ring)), axis_(std::move(axis)), summing_(std::move(summing)) {}

  int64_t ranks() const override { return ring_->ranks(); }
  nn::TokenPlaces places(int64_t tokens, const at::Tensor& starts,
                         at::Device device) const override {
    return ring_->places(tokens, starts, device);
  }
  // Of the differentiable form, which nothing here uses.
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const nn::TokenPlaces& here) const override {
    return ring_->attend(q, k, v, here);
  }
  Result forward(const Operands& x, const nn::TokenPlaces& here) const override {
    const auto own = parallel::context::packed(x);
    auto shape = own.sizes().vec();
    shape.insert(shape.begin(), ranks());
    const auto all = at::empty(shape, own.options());
    axis_.all_gather(all, own).wait();
    return summing_.merge ? by_operations(x.q, all, here) : fused(x.q, all, here);
  }
  Operands backward(const Operands& x, const nn::TokenPlaces& here,
                    const Result& result, const at::Tensor& d_o) const override {
    return ring_->backward(x, here, result, d_o);
  }
  std::vector<plan::Exchange> forward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    return ring_->forward_exchanges(sizes);
  }
  std::vector<plan::Exchange> backward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    return ring_->backward_exchanges(sizes);
  }

 private:
  // The ring's order: this rank's keys, those of the one before it and so on.
  int64_t source(int64_t hops) const {
    return (axis_.rank() - hops + ranks()) % ranks();
  }

  Result fused(const at::Tensor& q, const at::Tensor& all,
               const nn::TokenPlaces& here) const {
    const auto o = at::empty_like(q);
    const auto lse = at::empty({q.size(0), q.size(2), q.size(1)}, q.options());
    for (int64_t hops = 0; hops < ranks(); ++hops) {
      const auto part = hops == 0             ? Part::kFirst
                        : hops + 1 == ranks() ? Part::kLast
                                              : Part::kMiddle;
      if (hops > 0 && summing_.between) summing_.between(o, lse);
      const auto kv = all[source(hops)];
      ops::fused::attention(q, kv[0], kv[1], {here.own, here.document_starts},
                            here.positions[source(hops)], summing_.part(part), o, o,
                            lse);
    }
    return {o, lse};
  }

  Result by_operations(const at::Tensor& q, const at::Tensor& all,
                       const nn::TokenPlaces& here) const {
    AttentionPart sum;
    for (int64_t hops = 0; hops < ranks(); ++hops) {
      const auto kv = all[source(hops)];
      const auto part =
          ops::attention_part(q, kv[0], kv[1],
                              ops::visible_keys(here.own, here.positions[source(hops)],
                                                here.document_starts));
      sum = hops == 0 ? part : summing_.merge(sum, part);
    }
    return {sum.o.contiguous(), sum.lse.contiguous()};
  }

  std::shared_ptr<AttentionKernel> ring_;
  Group axis_;
  Summing summing_;
};

Changes summing(const Summing& summing) {
  return {.kernel = [=](const Changes::Kernel& ring, const Group& axis) {
    return std::make_shared<SummingKernel>(ring, axis, summing);
  }};
}

// The true output with another log-sum-exp, which the backward reads.
Changes with_lse(
    const std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>& lse) {
  return summing({.merge = [=](const AttentionPart& a, const AttentionPart& b) {
    return AttentionPart{ops::merge(a, b).o, lse(a.lse, b.lse)};
  }});
}

// The true log-sum-exp with another output.
Changes with_output(
    const std::function<at::Tensor(const AttentionPart&, const AttentionPart&)>& o) {
  return summing({.merge = [=](const AttentionPart& a, const AttentionPart& b) {
    return AttentionPart{o(a, b), ops::merge(a, b).lse};
  }});
}

std::vector<Mistake> mistakes() {
  return {
      {"online softmax: keys before the last block dropped",
       summing({.part =
                    [](Part part) {
                      return part == Part::kMiddle ? Part::kFirst
                             : part == Part::kLast ? Part::kOnly
                                                   : part;
                    }})},
      {"online softmax: log-sum-exp so far taken for 0",
       summing({.between = [](const auto&, const auto& lse) { lse.zero_(); }})},
      {"online softmax: weight of the blocks so far doubled",
       summing(
           {.between = [](const auto&, const auto& lse) { lse.add_(std::log(2.0)); }})},
      {"online softmax: sum so far halved",
       summing({.between = [](const auto& sum, const auto&) { sum.mul_(0.5); }})},
      {"merge: outputs not weighted",
       with_output([](const auto& a, const auto& b) { return a.o.add(b.o); })},
      {"merge: outputs averaged",
       with_output([](const auto& a, const auto& b) { return a.o.add(b.o).div(2); })},
      {"merge: weights exchanged", with_output([](const auto& a, const auto& b) {
         return ops::merge({a.o, b.lse}, {b.o, a.lse}).o;
       })},
      {"merge: log-sum-exp of the larger part",
       with_lse([](const auto& a, const auto& b) { return a.maximum(b); })},
      {"merge: log-sum-exp of the last part",
       with_lse([](const auto& /*a*/, const auto& b) { return b; })},
      {"merge: log-sum-exp of the first part",
       with_lse([](const auto& a, const auto& /*b*/) { return a; })}};
}

TEST(MutationOfTheMerge, EveryMistakeInTheOnlineSoftmaxIsNoticed) {
  const auto problem = with_documents(context_problem());
  for (const int64_t ranks : {2, 4}) {
    const Layout layout = {.context = ranks, .method = Method::kRing};
    const auto reference = run_reference(problem);
    for (const auto& right : {Summing{}, Summing{.merge = ops::merge}}) {
      ASSERT_EQ(difference(run_step(problem, layout, summing(right)), reference), "");
    }
    expect_noticed("Cp" + std::to_string(ranks) + "RingDocuments", problem, layout,
                   mistakes());
  }
}

}  // namespace
}  // namespace torchtitan::train::testing
