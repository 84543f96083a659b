#include "ops/linear.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

namespace torchtitan::ops {
namespace {

struct Case {
  at::ScalarType dtype;
  double tolerance;
};

class LinearTest : public ::testing::TestWithParam<Case> {};

// Sizes on both sides of the threshold for oneDNN, more rows than a panel of bfloat16;
// strided rows.
TEST_P(LinearTest, EqualsPlainProducts) {
  const auto [dtype, tolerance] = GetParam();
  for (const int64_t rows : {3, 300, 2100}) {
    const auto x = at::randn({rows, 2 * 128}, dtype).narrow(1, 5, 128);
    const auto w = at::randn({150, 128}, dtype);
    const auto dy = at::randn({rows, 150}, dtype);
    const auto exact = [](const at::Tensor& t) { return t.to(at::kDouble); };
    const auto expect = [&](const at::Tensor& found, const at::Tensor& expected) {
      EXPECT_LE(exact(found).sub(expected).norm().item<double>(),
                tolerance * expected.norm().item<double>());
    };
    const auto y = exact(x).mm(exact(w).t());
    auto out = at::full({rows, 150}, std::nan(""), dtype);
    linear_(out, x, w, Into::kOverwrite);
    expect(out, y);
    linear_(out, x, w, Into::kAdd);
    expect(out, y.mul(2));
    const auto dx = exact(dy).mm(exact(w));
    auto input = at::full({rows, 128}, std::nan(""), dtype);
    linear_backward_input_(input, dy, w, Into::kOverwrite);
    expect(input, dx);
    linear_backward_input_(input, dy, w, Into::kAdd);
    expect(input, dx.mul(2));
    auto weight = at::ones({150, 128}, dtype);
    linear_backward_weight_(weight, dy, x);
    expect(weight, exact(dy).t().mm(exact(x)).add(1));
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, LinearTest,
                         ::testing::Values(Case{at::kDouble, 1e-12},
                                           Case{at::kFloat, 1e-6},
                                           Case{at::kBFloat16, 1e-2}),
                         [](const auto& info) {
                           return c10::toString(info.param.dtype);
                         });

TEST(Linear, BFloat16ProductsAreAddedIntoAFloatBuffer) {
  const auto x = at::randn({4, 6}, at::kBFloat16);
  const auto dy = at::randn({4, 5}, at::kBFloat16);
  const auto dw = at::full({5, 6}, 1000.0, at::kFloat);
  linear_backward_weight_(dw, dy, x);
  const auto expected = dy.to(at::kDouble).t().mm(x.to(at::kDouble));
  // 1000 + a small number would be 1000 in bfloat16.
  EXPECT_LE(dw.to(at::kDouble).sub(1000).sub(expected).abs().max().item<double>(),
            0.05);
}

TEST(Linear, SizesThatDoNotFitAreRefused) {
  const auto x = at::zeros({4, 6}), w = at::zeros({5, 7}), y = at::zeros({4, 5});
  EXPECT_THROW(linear_(y, x, w, Into::kOverwrite), c10::ValueError);
}

}  // namespace
}  // namespace torchtitan::ops
