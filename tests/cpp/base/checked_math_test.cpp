#include "base/checked_math.h"

#include <gtest/gtest.h>

#include <array>
#include <limits>

namespace torchtitan::base {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

TEST(CheckedMath, AddsAndMultipliesUpToTheLimit) {
  EXPECT_EQ(checked_add(kMax - 1, 1), kMax);
  EXPECT_EQ(checked_mul(kMax, 1), kMax);
  EXPECT_EQ(checked_product(std::array<int64_t, 3>{2, 3, 7}), 42);
  EXPECT_EQ(checked_product({}), 1);
}

TEST(CheckedMath, RefusesToWrapAndNamesTheOperands) {
  EXPECT_THROW(checked_add(kMax, 1), std::invalid_argument);
  try {
    checked_mul(int64_t{1} << 32, int64_t{1} << 31);
    FAIL() << "2^63 does not fit";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "integer overflow: 4294967296 * 2147483648");
  }
}

TEST(CheckedMath, CeilDivRoundsUp) {
  EXPECT_EQ(ceil_div(0, 4), 0);
  EXPECT_EQ(ceil_div(8, 4), 2);
  EXPECT_EQ(ceil_div(9, 4), 3);
  EXPECT_THROW(ceil_div(1, 0), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::base
