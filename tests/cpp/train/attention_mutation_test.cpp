// Every mistake about the positions of tokens, what they see, the scale of attention,
// and how a sequence is dealt out among context ranks is noticed.
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>

#include "train/mistakes.h"

namespace torchtitan::train::testing {
namespace {

using collectives::Group;
using nn::TokenPlaces;
using parallel::context::Balance;
using parallel::context::Method;

std::string layout_name(Method method, const std::string& end = "Documents") {
  constexpr const char* kNames[] = {"Gather", "Ring", "Ulysses"};
  return std::string("Cp2") + kNames[static_cast<int>(method)] + end;
}

class AttentionMistakes : public ::testing::TestWithParam<Method> {
 protected:
  static void expect_noticed(const std::vector<Mistake>& mistakes) {
    testing::expect_noticed(layout_name(GetParam()), with_documents(context_problem()),
                            {.context = 2, .method = GetParam()}, mistakes);
  }
};

Mistake rotation(const std::string& name, std::function<void(TokenPlaces&)> mistake) {
  return {"rotary positions: " + name, around_kernel({.rotation = std::move(mistake)})};
}
Mistake attention(const std::string& name, std::function<void(TokenPlaces&)> mistake) {
  return {"attention: " + name, around_kernel({.attention = std::move(mistake)})};
}

TEST_P(AttentionMistakes, AboutPositionsAreNoticed) {
  expect_noticed(
      {rotation("as if nobody shared the sequence",
                [](auto& places) {
                  places.own = at::arange(places.own.size(0), at::kLong);
                }),
       rotation("off by one within the sequence",
                [](auto& places) { places.own = places.own.roll(1); }),
       rotation("those of another rank",
                [](auto& places) {
                  const bool is_first = at::equal(places.own, places.positions[0]);
                  places.own = places.positions[is_first ? 1 : 0];
                }),
       attention("keys in the reverse order of ranks",
                 [](auto& places) { places.positions = places.positions.flip({0}); }),
       attention("every rank's keys at this one's positions",
                 [](auto& places) {
                   places.positions = places.own.expand_as(places.positions).clone();
                 }),
       attention("queries and keys in another order", [](auto& places) {
         places.own = places.own.roll(1);
         places.positions = places.positions.roll(1, 1);
       })});
}

// Not of Ulysses, whose queries and keys read the same positions.
class CausalMistakes : public AttentionMistakes {};

TEST_P(CausalMistakes, AreNoticed) {
  const auto problem = context_problem();
  testing::expect_noticed(
      layout_name(GetParam(), ""), problem, {.context = 2, .method = GetParam()},
      {attention("no causal mask",
                 [](auto& places) {
                   places.own = at::full_like(places.own, places.positions.numel() - 1);
                 }),
       attention("a query does not see its own key",
                 [](auto& places) { places.own = places.own.sub(1).clamp_min(0); }),
       attention("a query sees the key after its own", [](auto& places) {
         places.own = places.own.add(1).clamp_max(places.positions.numel() - 1);
       })});
}

TEST_P(AttentionMistakes, AboutDocumentsAreNoticed) {
  expect_noticed(
      {attention("no documents",
                 [](auto& places) { places.document_starts = at::Tensor(); }),
       attention("a document does not see its first token",
                 [](auto& places) {
                   places.document_starts = places.document_starts.add(1).minimum(
                       at::arange(places.document_starts.size(1)));
                 }),
       attention("documents of another row", [](auto& places) {
         places.document_starts = places.document_starts.roll(1, 0);
       })});
}

TEST_P(AttentionMistakes, AboutScalesAreNoticed) {
  const auto args = context_problem().args;
  const double root = std::sqrt(static_cast<double>(args.head_dim()));
  const auto share = static_cast<double>(args.n_heads / args.n_kv_heads);
  expect_noticed(
      {{"attention scale: left out", around_kernel({.q = root})},
       {"attention scale: 1 / D", around_kernel({.q = 1 / root})},
       {"attention scale: left out in the gradient of q", around_kernel({.d_q = root})},
       {"attention scale: left out in the gradient of k", around_kernel({.d_k = root})},
       {"gradient of k: averaged over the heads that share it",
        around_kernel({.d_k = 1 / share})},
       {"gradient of v: averaged over the heads that share it",
        around_kernel({.d_v = 1 / share})},
       {"gradients of k and v: averaged over the context ranks",
        around_kernel({.d_k = 0.5, .d_v = 0.5})}});
}

INSTANTIATE_TEST_SUITE_P(Mutation, CausalMistakes,
                         ::testing::Values(Method::kAllGather, Method::kRing));
INSTANTIATE_TEST_SUITE_P(Mutation, AttentionMistakes,
                         ::testing::Values(Method::kAllGather, Method::kRing,
                                           Method::kUlysses));

using NamedBatch = Changes::NamedBatch;

NamedBatch at_positions(NamedBatch batch, const NamedBatch& whole,
                        const std::vector<std::string>& names,
                        const at::Tensor& positions) {
  for (const auto& name : names) {
    batch.at(name) = whole.at(name).index_select(1, positions);
  }
  return batch;
}

// Tokens [parts[0] * n, ...) and so on of a sequence of chunks of n.
at::Tensor chunks(const at::Tensor& whole, const std::vector<int64_t>& parts) {
  const auto each = at::arange(whole.size(1), at::kLong).view({4, -1});
  return each.index_select(0, at::tensor(parts)).flatten();
}

Mistake dealt(const std::string& name, std::vector<std::string> wrong,
              std::function<std::vector<int64_t>(int64_t rank)> parts) {
  return {"dealing out: " + name,
          {.deal = [=](const NamedBatch& whole, NamedBatch batch, const Group& axis) {
            return at_positions(std::move(batch), whole, wrong,
                                chunks(whole.at("input"), parts(axis.rank())));
          }}};
}

// Of two ranks the first one has chunks 0 and 3 of four, the other one 1 and 2.
TEST(MutationOfDealingOut, EveryMistakeInTheOrderOfHeadAndTailIsNoticed) {
  const std::vector<std::string> both = {"input", "labels"};
  using Parts = std::vector<int64_t>;
  const auto in_order = [](int64_t rank) { return Parts{2 * rank, 2 * rank + 1}; };
  const auto same_side = [](int64_t rank) { return Parts{rank, rank + 2}; };
  const auto tail_first = [](int64_t rank) { return Parts{3 - rank, rank}; };
  const auto other_rank = [](int64_t rank) { return Parts{1 - rank, rank + 2}; };
  for (const auto method : {Method::kAllGather, Method::kRing, Method::kUlysses}) {
    expect_noticed(layout_name(method) + "HeadTail", with_documents(context_problem()),
                   {.context = 2, .method = method},
                   {dealt("in order instead of head and tail", both, in_order),
                    dealt("labels in order", {"labels"}, in_order),
                    dealt("tail not mirrored", both, same_side),
                    dealt("tail before head", both, tail_first),
                    dealt("labels: tail before head", {"labels"}, tail_first),
                    dealt("tokens of another rank", both, other_rank)});
  }
}

TEST(MutationOfDealingOut, EveryMistakeInTheOrderByWorkIsNoticed) {
  const auto problem = with_documents(context_problem());
  const auto otherwise = [](const std::string& name, Balance balance) {
    return Mistake{
        "dealing out: " + name + " instead of by work",
        {.deal = [=](const NamedBatch& whole, NamedBatch, const Group& axis) {
          return parallel::context::attention(axis, Method::kRing, balance)
              ->deal(whole);
        }}};
  };
  expect_noticed("Cp2RingPtrr", problem,
                 {.context = 2, .method = Method::kRing, .balance = Balance::kByWork},
                 {otherwise("in order", Balance::kInOrder),
                  otherwise("head and tail", Balance::kHeadTail)});
}

}  // namespace
}  // namespace torchtitan::train::testing
