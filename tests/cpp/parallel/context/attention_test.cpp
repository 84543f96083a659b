// Ranks that share sequences get the attention and the gradients of one that has them
// whole, by every method.
#include "parallel/context/attention.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <mutex>

#include "collectives/fake_group.h"
#include "collectives/local_world.h"

namespace torchtitan::parallel::context {
namespace {

constexpr int64_t kRows = 2, kTokens = 48, kHeads = 8, kGroups = 4, kDim = 6;

using Operands = nn::AttentionKernel::Operands;

struct Found {
  at::Tensor o, dq, dk, dv;
};

struct Problem {
  Operands x;
  at::Tensor d_o, starts;

  Problem(at::ScalarType dtype, bool documents) {
    at::manual_seed(5);
    const auto random = [&](int64_t heads) {
      return at::randn({kRows, kTokens, heads, kDim}, at::kDouble).to(dtype);
    };
    x = {random(kHeads), random(kGroups), random(kGroups)};
    d_o = random(kHeads);
    if (!documents) return;
    const auto order = at::arange(kTokens, at::kLong);
    starts = at::stack({order.div(7, "floor").mul(7), order.div(30, "floor").mul(30)});
  }
};

Found differentiated(const nn::AttentionKernel& kernel, const Operands& x,
                     const at::Tensor& d_o, const nn::TokenPlaces& places) {
  const auto leaf = [](const at::Tensor& t) {
    return t.clone().set_requires_grad(true);
  };
  const Operands leaves = {leaf(x.q), leaf(x.k), leaf(x.v)};
  const auto o = kernel.attend(leaves.q, leaves.k, leaves.v, places);
  torch::autograd::backward({o}, {d_o});
  return {o.detach(), leaves.q.grad(), leaves.k.grad(), leaves.v.grad()};
}

Found by_hand(const nn::AttentionKernel& kernel, const Operands& x,
              const at::Tensor& d_o, const nn::TokenPlaces& places) {
  const auto operands = kernel.enter(x);
  const auto result = kernel.forward(operands, places);
  const auto d = kernel.backward(operands, places, result, d_o);
  return {result.o, d.q, d.k, d.v};
}

Found whole(const Problem& problem) {
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  const auto kernel = nn::local_attention();
  return differentiated(
      *kernel, {wide(problem.x.q), wide(problem.x.k), wide(problem.x.v)},
      wide(problem.d_o), kernel->places(kTokens, problem.starts, at::kCPU));
}

using RunKernel = Found (*)(const nn::AttentionKernel&, const Operands&,
                            const at::Tensor&, const nn::TokenPlaces&);

void expect_equal_to_whole(int64_t ranks, Method method, Balance balance,
                           const Problem& problem, RunKernel run, double tolerance) {
  Found all;
  for (auto* part : {&all.o, &all.dq, &all.dk, &all.dv}) {
    const int64_t heads = part == &all.o || part == &all.dq ? kHeads : kGroups;
    *part = at::full({kRows, kTokens, heads, kDim}, std::nan(""), at::kDouble);
  }
  std::mutex mutex;
  const collectives::LocalWorld world(ranks, std::chrono::seconds(60));
  world.run([&](int64_t rank) {
    const auto kernel = attention(world.group(rank, "cp"), method, balance);
    const auto places = kernel->places(kTokens / ranks, problem.starts, at::kCPU);
    const auto own = [&](const at::Tensor& t) { return t.index_select(1, places.own); };
    const auto found =
        run(*kernel, {own(problem.x.q), own(problem.x.k), own(problem.x.v)},
            own(problem.d_o), places);
    const std::lock_guard lock(mutex);
    const auto place = [&](at::Tensor& into, const at::Tensor& part) {
      EXPECT_EQ(part.scalar_type(), problem.x.q.scalar_type());
      into.index_copy_(1, places.own, part.to(at::kDouble));
    };
    place(all.o, found.o);
    place(all.dq, found.dq);
    place(all.dk, found.dk);
    place(all.dv, found.dv);
  });
  const auto expected = whole(problem);
  const auto expect_close = [&](const at::Tensor& x, const at::Tensor& y) {
    EXPECT_LE(x.sub(y).norm().item<double>(), tolerance * y.norm().item<double>());
  };
  expect_close(all.o, expected.o);
  expect_close(all.dq, expected.dq);
  expect_close(all.dk, expected.dk);
  expect_close(all.dv, expected.dv);
}

class ContextAttentionTest
    : public ::testing::TestWithParam<std::tuple<Method, Balance, bool>> {
 protected:
  void expect_equal(at::ScalarType dtype, RunKernel run, double tolerance) {
    const auto [method, balance, documents] = GetParam();
    for (const int64_t ranks : {2, 3, 4}) {
      if (method == Method::kUlysses && kGroups % ranks != 0) continue;
      SCOPED_TRACE(ranks);
      expect_equal_to_whole(ranks, method, balance, Problem(dtype, documents), run,
                            tolerance);
    }
  }
};

TEST_P(ContextAttentionTest, ByHandInFloat64) {
  expect_equal(at::kDouble, &by_hand, 1e-13);
}

TEST_P(ContextAttentionTest, ByHandInBFloat16) {
  expect_equal(at::kBFloat16, &by_hand, 8e-3);
}

TEST_P(ContextAttentionTest, DifferentiatedInFloat64) {
  expect_equal(at::kDouble, &differentiated, 1e-13);
}

// A dtype without kernels of our own: tensor operations.
TEST_P(ContextAttentionTest, DifferentiatedInFloat16) {
  expect_equal(at::kHalf, &differentiated, 2e-3);
}

INSTANTIATE_TEST_SUITE_P(
    Context, ContextAttentionTest,
    ::testing::Combine(
        ::testing::Values(Method::kAllGather, Method::kRing, Method::kUlysses),
        ::testing::Values(Balance::kHeadTail, Balance::kInOrder, Balance::kByWork),
        ::testing::Bool()));

TEST(ContextAttention, UlyssesRefusesHeadsThatRanksDoNotDivide) {
  const auto kernel = attention(collectives::fake_group("cp", 0, 3), Method::kUlysses,
                                Balance::kHeadTail);
  const auto x = at::empty({1, 4, 4, 2});
  EXPECT_THROW(kernel->enter({x, x, x}), std::invalid_argument);
}

TEST(ContextAttention, OneRankHasWholeSequences) {
  const auto kernel =
      attention(collectives::Group("cp"), Method::kRing, Balance::kHeadTail);
  EXPECT_EQ(kernel->ranks(), 1);
  EXPECT_THROW(parse_method("ring"), c10::ValueError);
}

TEST(ContextAttention, TokensOfABatchAreDealtOut) {
  const auto kernel =
      attention(collectives::fake_group("cp", 1, 2), Method::kRing, Balance::kHeadTail);
  const auto input = at::arange(16, at::kLong).view({2, 8});
  const auto starts = at::zeros({2, 8}, at::kLong);
  const auto own = kernel->deal(
      {{"input", input}, {"labels", input.add(1)}, {"document_starts", starts}});
  const auto expected =
      at::tensor({2, 3, 4, 5, 10, 11, 12, 13}, at::kLong).view({2, 4});
  EXPECT_TRUE(at::equal(own.at("input"), expected));
  EXPECT_TRUE(at::equal(own.at("labels"), expected.add(1)));
  EXPECT_TRUE(at::equal(own.at("document_starts"), starts));
  EXPECT_THROW(kernel->deal({{"input", input.narrow(1, 0, 7)}}), c10::ValueError);
}

}  // namespace
}  // namespace torchtitan::parallel::context
