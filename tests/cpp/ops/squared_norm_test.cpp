#include "ops/squared_norm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>

namespace torchtitan::ops {
namespace {

TEST(SquaredNormTest, EqualsTheDefinitionInDouble) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const int64_t numel : {0, 1, 7, 1 << 15, 100'003}) {
      const auto x = at::randn({numel}).to(dtype);
      const double expected = x.to(at::kDouble).square().sum().item<double>();
      const auto found = squared_norm(x);
      EXPECT_EQ(found.scalar_type(), at::kDouble);
      EXPECT_NEAR(found.item<double>(), expected, 1e-13 * expected) << numel;
    }
  }
}

TEST(SquaredNormTest, IsTheSameForAnyNumberOfThreads) {
  const auto x = at::randn({300'001});
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const double one = squared_norm(x).item<double>();
  at::set_num_threads(3);
  const double three = squared_norm(x).item<double>();
  at::set_num_threads(before);
  EXPECT_EQ(one, three);
}

TEST(SquaredNormTest, KeepsNanAndInfinity) {
  auto x = at::zeros({1000});
  x[999] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isinf(squared_norm(x).item<double>()));
  x[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(squared_norm(x).item<double>()));
}

TEST(SquaredNormTest, DoesNotOverflowFloat) {
  const auto x = at::zeros({4}).add(1e30);
  EXPECT_NEAR(squared_norm(x).item<double>(), 4e60, 1e54);
}

}  // namespace
}  // namespace torchtitan::ops
