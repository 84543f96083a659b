// Attention put together from blocks of keys equals scaled_dot_product_attention with a
// dense mask, whatever the order of the tokens and wherever documents begin.
#include "ops/attention.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "ops/fused.h"
#include "ops/fused_attention.h"

namespace torchtitan::ops {
namespace {

constexpr int64_t kTokens = 150, kHeads = 4, kGroups = 2, kDim = 10, kRows = 2;

struct Problem {
  at::Tensor q, k, v, d_o;
  at::Tensor query_positions, key_positions, starts;

  Problem(at::ScalarType dtype, bool documents) {
    at::manual_seed(3);
    const auto random = [&](int64_t tokens, int64_t heads) {
      return at::randn({kRows, tokens, heads, kDim}, at::kDouble).to(dtype);
    };
    const int64_t queries = 90;
    q = random(queries, kHeads);
    k = random(kTokens, kGroups);
    v = random(kTokens, kGroups);
    d_o = random(queries, kHeads);
    key_positions = at::randperm(kTokens, at::kLong);
    query_positions = at::randperm(kTokens, at::kLong).narrow(0, 0, queries).clone();
    if (!documents) return;
    const auto order = at::arange(kTokens, at::kLong);
    starts =
        at::stack({order.div(17, "floor").mul(17), order.div(70, "floor").mul(70)});
  }

  at::Tensor visible() const {
    return visible_keys(query_positions, key_positions, starts);
  }
  fused::QueryPlaces queries() const { return {query_positions, starts}; }
};

struct Found {
  at::Tensor o, dq, dk, dv;
};

Found expected(const Problem& p) {
  const auto leaf = [](const at::Tensor& x) {
    return x.to(at::kDouble).clone().set_requires_grad(true);
  };
  const auto q = leaf(p.q), k = leaf(p.k), v = leaf(p.v);
  const auto o = attention(q, k, v, p.visible());
  torch::autograd::backward({o}, {p.d_o.to(at::kDouble)});
  return {o.detach(), q.grad(), k.grad(), v.grad()};
}

// Blocks of 64, 6 and 80 keys.
constexpr int64_t kBorders[] = {0, 64, 70, kTokens};

Found by_fused_kernels(const Problem& p) {
  const auto wide = fused::wide_options(p.q);
  const auto sum = at::empty(p.q.sizes(), wide);
  const auto lse = at::empty({kRows, kHeads, p.q.size(1)}, wide);
  Found found = {at::empty_like(p.q), at::zeros(p.q.sizes(), wide),
                 at::zeros(p.k.sizes(), wide), at::zeros(p.k.sizes(), wide)};
  const auto block = [](const at::Tensor& x, size_t b, int64_t dim) {
    return x.narrow(dim, kBorders[b], kBorders[b + 1] - kBorders[b]).contiguous();
  };
  constexpr fused::Part kParts[] = {fused::Part::kFirst, fused::Part::kMiddle,
                                    fused::Part::kLast};
  for (size_t b = 0; b < 3; ++b) {
    fused::attention(p.q, block(p.k, b, 1), block(p.v, b, 1), p.queries(),
                     block(p.key_positions, b, 0), kParts[b], sum, found.o, lse);
  }
  const auto delta = fused::attention_delta(found.o, p.d_o);
  for (size_t b = 0; b < 3; ++b) {
    const auto dk = at::zeros_like(block(found.dk, b, 1)), dv = at::zeros_like(dk);
    fused::add_attention_backward(p.q, block(p.k, b, 1), block(p.v, b, 1), p.queries(),
                                  block(p.key_positions, b, 0), lse, delta, p.d_o,
                                  {found.dq, dk, dv});
    found.dk.narrow(1, kBorders[b], dk.size(1)).copy_(dk);
    found.dv.narrow(1, kBorders[b], dv.size(1)).copy_(dv);
  }
  return found;
}

Found at_once(const Problem& p) {
  const auto lse = at::empty({kRows, kHeads, p.q.size(1)}, fused::wide_options(p.q));
  Found found = {at::empty_like(p.q), at::empty_like(p.q), at::empty_like(p.k),
                 at::empty_like(p.v)};
  fused::attention(p.q, p.k, p.v, p.queries(), p.key_positions, fused::Part::kOnly, {},
                   found.o, lse);
  fused::attention_backward(p.q, p.k, p.v, p.queries(), p.key_positions, lse,
                            fused::attention_delta(found.o, p.d_o), p.d_o,
                            {found.dq, found.dk, found.dv});
  return found;
}

Found by_tensor_operations(const Problem& p) {
  AttentionPart all;
  const auto cut = [](const at::Tensor& x, size_t b, int64_t dim) {
    return x.narrow(dim, kBorders[b], kBorders[b + 1] - kBorders[b]);
  };
  for (size_t b = 0; b < 3; ++b) {
    const auto part =
        attention_part(p.q, cut(p.k, b, 1), cut(p.v, b, 1), cut(p.visible(), b, 3));
    all = b == 0 ? part : merge(all, part);
  }
  const auto delta = all.o.mul(p.d_o).sum(-1).transpose(1, 2);
  Found found = {all.o, at::zeros_like(all.o), at::Tensor(), at::Tensor()};
  std::vector<at::Tensor> dk, dv;
  for (size_t b = 0; b < 3; ++b) {
    const auto part =
        attention_part_backward(p.q, cut(p.k, b, 1), cut(p.v, b, 1),
                                cut(p.visible(), b, 3), all.lse, delta, p.d_o);
    found.dq.add_(part.q);
    dk.push_back(part.k);
    dv.push_back(part.v);
  }
  found.dk = at::cat(dk, 1);
  found.dv = at::cat(dv, 1);
  return found;
}

void expect_close(const Found& found, const Found& expected, double tolerance) {
  const auto error = [](const at::Tensor& x, const at::Tensor& y) {
    return x.sub(y).norm().item<double>() / y.norm().item<double>();
  };
  EXPECT_LE(error(found.o, expected.o), tolerance);
  EXPECT_LE(error(found.dq, expected.dq), tolerance);
  EXPECT_LE(error(found.dk, expected.dk), tolerance);
  EXPECT_LE(error(found.dv, expected.dv), tolerance);
}

class AttentionTest : public ::testing::TestWithParam<bool> {};

TEST_P(AttentionTest, FusedBlocksEqualADenseMask) {
  const std::pair<at::ScalarType, double> cases[] = {
      {at::kDouble, 1e-13}, {at::kFloat, 2e-6}, {at::kBFloat16, 8e-3}};
  for (const auto& [dtype, tolerance] : cases) {
    SCOPED_TRACE(dtype);
    const Problem problem(dtype, GetParam());
    expect_close(by_fused_kernels(problem), expected(problem), tolerance);
    expect_close(at_once(problem), expected(problem), tolerance);
  }
}

TEST_P(AttentionTest, TensorOperationsEqualADenseMask) {
  const Problem problem(at::kDouble, GetParam());
  expect_close(by_tensor_operations(problem), expected(problem), 1e-13);
}

INSTANTIATE_TEST_SUITE_P(Documents, AttentionTest, ::testing::Bool());

TEST(AttentionBlocks, ThoseThatNoQuerySeesAreNotComputed) {
  const auto order = at::arange(256, at::kLong);
  const auto starts = order.div(128, "floor").mul(128).unsqueeze(0);
  // Queries in eight blocks of 32, keys in four of 64.
  EXPECT_EQ(fused::attention_blocks({order, {}}, order), 2 * (1 + 2 + 3 + 4));
  EXPECT_EQ(fused::attention_blocks({order, starts}, order), 2 * (1 + 2) * 2);
  const auto late = order.narrow(0, 128, 128);
  EXPECT_EQ(fused::attention_blocks({order.narrow(0, 0, 128), {}}, late), 0);
  EXPECT_EQ(fused::attention_blocks({late, {}}, order.narrow(0, 0, 128)), 4 * 2);
}

}  // namespace
}  // namespace torchtitan::ops
