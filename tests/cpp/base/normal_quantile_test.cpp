#include "base/normal_quantile.h"

#include <gtest/gtest.h>

#include <cmath>

namespace torchtitan::base {
namespace {

TEST(NormalQuantile, EqualsTabulatedValues) {
  EXPECT_EQ(normal_quantile(0.5), 0.0);
  EXPECT_NEAR(normal_quantile(0.975), 1.959963984540054, 1e-14);
  EXPECT_NEAR(normal_quantile(0.001), -3.090232306167813, 1e-14);
  EXPECT_NEAR(normal_quantile(1e-20), -9.262340089798408, 1e-13);
}

TEST(NormalQuantile, InvertsTheDistributionFunctionEverywhere) {
  for (double x = -37.0; x <= 0.0; x += 0.037) {
    EXPECT_NEAR(normal_quantile(normal_cdf(x)), x, 1e-13 * std::max(1.0, -x)) << x;
  }
  for (double x = 0.0; x <= 5.0; x += 0.037) {
    // Above the centre the probability itself is rounded: allow half an ulp of 1 over
    // the density.
    const double density = std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI);
    EXPECT_NEAR(normal_quantile(normal_cdf(x)), x, 1e-13 + 2e-16 / density) << x;
  }
}

TEST(NormalQuantile, GivesInfinitiesAtTheEndsAndNanBeyond) {
  EXPECT_EQ(normal_quantile(0.0), -INFINITY);
  EXPECT_EQ(normal_quantile(1.0), INFINITY);
  EXPECT_TRUE(std::isnan(normal_quantile(-0.1)));
  EXPECT_TRUE(std::isnan(normal_quantile(1.1)));
  EXPECT_TRUE(std::isnan(normal_quantile(NAN)));
}

}  // namespace
}  // namespace torchtitan::base
