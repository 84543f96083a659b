#include "base/random_fill.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "base/normal_quantile.h"
#include "base/philox.h"

namespace torchtitan::base {
namespace {

using Shape = std::vector<int64_t>;
using Fill =
    std::function<void(std::span<float>, const RandomTensor&, const RandomBox&)>;

const TruncatedNormal kInit{
    .mean = 0.0, .standard_deviation = 0.02, .low = -2.0, .high = 2.0};

const std::vector<std::pair<std::string, Fill>> kFills{
    {"uniform", [](auto out, auto& t, auto& b) { fill_uniform(out, t, b, -1.0, 3.0); }},
    {"normal", [](auto out, auto& t, auto& b) { fill_normal(out, t, b, 0.5, 2.0); }},
    {"truncated",
     [](auto out, auto& t, auto& b) { fill_truncated_normal(out, t, b, kInit); }},
};

std::vector<float> draw(const Fill& fill, const Shape& shape, const Shape& offset,
                        const Shape& size, std::string_view name = "w") {
  int64_t num_elements = 1;
  for (const int64_t extent : size) num_elements *= extent;
  std::vector<float> out(num_elements, -99.0f);
  fill(out, {.seed = 7, .name = name, .global_shape = shape},
       {.offset = offset, .size = size});
  return out;
}

std::vector<float> draw_many(const Fill& fill, int64_t count) {
  return draw(fill, {count}, {0}, {count});
}

struct Moments {
  double mean = 0.0;
  double variance = 0.0;
  double kurtosis = 0.0;
};

Moments moments_of(const std::vector<float>& values) {
  Moments m;
  const double n = static_cast<double>(values.size());
  for (const float v : values) m.mean += v / n;
  for (const float v : values) m.variance += std::pow(v - m.mean, 2) / n;
  for (const float v : values) m.kurtosis += std::pow(v - m.mean, 4) / n;
  m.kurtosis /= m.variance * m.variance;
  return m;
}

TEST(RandomFill, EveryBoxOfATensorHoldsTheNumbersOfTheWholeTensor) {
  const Shape shape{3, 5, 7};
  for (const auto& [label, fill] : kFills) {
    const std::vector<float> whole = draw(fill, shape, {0, 0, 0}, shape);
    for (const auto& [offset, size] :
         std::vector<std::pair<Shape, Shape>>{{{1, 0, 0}, {2, 5, 7}},
                                              {{0, 2, 0}, {3, 2, 7}},
                                              {{0, 0, 3}, {3, 5, 2}},
                                              {{1, 1, 1}, {1, 3, 5}},
                                              {{2, 4, 6}, {1, 1, 1}}}) {
      const std::vector<float> part = draw(fill, shape, offset, size);
      size_t position = 0;
      for (int64_t i = 0; i < size[0]; ++i) {
        for (int64_t j = 0; j < size[1]; ++j) {
          for (int64_t k = 0; k < size[2]; ++k) {
            const int64_t index =
                ((offset[0] + i) * 5 + offset[1] + j) * 7 + offset[2] + k;
            ASSERT_EQ(part[position++], whole[index]) << label << " element " << index;
          }
        }
      }
    }
  }
}

TEST(RandomFill, EmptyBoxesAndScalarsAreBoxesToo) {
  for (const auto& [label, fill] : kFills) {
    EXPECT_TRUE(draw(fill, {4, 3}, {4, 0}, {0, 3}).empty()) << label;
    EXPECT_EQ(draw(fill, {}, {}, {}), draw(fill, {9}, {0}, {1})) << label;
  }
}

TEST(RandomFill, NumbersDependOnTheNameAndRepeatForIt) {
  for (const auto& [label, fill] : kFills) {
    EXPECT_EQ(draw(fill, {64}, {0}, {64}, "a"), draw(fill, {64}, {0}, {64}, "a"))
        << label;
    EXPECT_NE(draw(fill, {64}, {0}, {64}, "a"), draw(fill, {64}, {0}, {64}, "b"))
        << label;
  }
}

TEST(RandomFill, ElementsComeFromTheBlockOfHalfTheirIndex) {
  const PhiloxStream stream(7, "w");
  const auto [first, second] = stream.uniform_pair(3);
  const std::vector<float> uniform = draw(kFills[0].second, {10}, {6}, {2});
  EXPECT_EQ(uniform[0], static_cast<float>(-1.0 + 4.0 * first));
  EXPECT_EQ(uniform[1], static_cast<float>(-1.0 + 4.0 * second));
}

// Bounds below are five standard errors of the estimate for 200,000 draws.
TEST(RandomFill, UniformHasItsMoments) {
  const Moments m = moments_of(draw_many(kFills[0].second, 200000));
  EXPECT_NEAR(m.mean, 1.0, 0.013);
  EXPECT_NEAR(m.variance, 16.0 / 12.0, 0.014);
  EXPECT_NEAR(m.kurtosis, 1.8, 0.02);
}

TEST(RandomFill, NormalHasItsMomentsAndIndependentNeighbours) {
  const std::vector<float> values = draw_many(kFills[1].second, 200000);
  const Moments m = moments_of(values);
  EXPECT_NEAR(m.mean, 0.5, 0.0224);
  EXPECT_NEAR(m.variance, 4.0, 0.0633);
  EXPECT_NEAR(m.kurtosis, 3.0, 0.055);
  double covariance = 0.0;
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    covariance += (values[i] - m.mean) * (values[i + 1] - m.mean) / values.size();
  }
  EXPECT_NEAR(covariance / m.variance, 0.0, 0.0112);
}

TEST(RandomFill, WideCutoffsLeaveAPlainNormal) {
  const Moments m = moments_of(draw_many(kFills[2].second, 200000));
  EXPECT_NEAR(m.mean, 0.0, 0.02 * 0.0112);
  EXPECT_NEAR(m.variance, 0.0004, 0.0004 * 0.0158);
  EXPECT_NEAR(m.kurtosis, 3.0, 0.055);
}

TEST(RandomFill, TruncationKeepsTheCutoffsAndTheConditionalMean) {
  for (const auto& [low, high] : std::vector<std::pair<double, double>>{
           {-1.0, 2.0}, {0.5, 4.0}, {6.0, 9.0}, {-9.0, -6.0}, {-0.1, 0.1}}) {
    const std::vector<float> values = draw_many(
        [&](auto out, auto& t, auto& b) {
          fill_truncated_normal(
              out, t, b,
              {.mean = 0.0, .standard_deviation = 1.0, .low = low, .high = high});
        },
        100000);
    const auto [smallest, largest] = std::minmax_element(values.begin(), values.end());
    EXPECT_GE(*smallest, static_cast<float>(low));
    EXPECT_LE(*largest, static_cast<float>(high));
    const auto density = [](double x) {
      return std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI);
    };
    const double mass = low > 0 ? normal_cdf(-low) - normal_cdf(-high)
                                : normal_cdf(high) - normal_cdf(low);
    const Moments m = moments_of(values);
    EXPECT_NEAR(m.mean, (density(low) - density(high)) / mass,
                5.0 * std::sqrt(m.variance / 100000));
  }
}

void expect_refused(const std::function<void()>& call, const std::string& text) {
  try {
    call();
    FAIL() << "accepted, expected: " << text;
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

TEST(RandomFill, RefusesBoxesOutsideTheTensorAndWrongOutputs) {
  std::vector<float> out(4);
  const Shape shape{4, 3};
  const RandomTensor tensor{.seed = 0, .name = "norm.weight", .global_shape = shape};
  const auto fill = [&](const Shape& offset, const Shape& size) {
    return
        [&] { fill_uniform(out, tensor, {.offset = offset, .size = size}, 0.0, 1.0); };
  };
  expect_refused(
      fill({3, 0}, {2, 2}),
      "'norm.weight': dim 0 has size 4, but the box starts at 3 and has size 2");
  expect_refused(fill({0, -1}, {2, 2}), "dim 1 has size 3, but the box starts at -1");
  expect_refused(fill({0, 0}, {3, 3}), "the box has 9 elements, the output 4");
  expect_refused(fill({0}, {4}), "the tensor has 2 dims, the box has 1 offsets");
}

TEST(RandomFill, RefusesParametersWithoutADistribution) {
  std::vector<float> out(2);
  const Shape shape{2}, zero{0};
  const RandomTensor tensor{.seed = 0, .name = "w", .global_shape = shape};
  const RandomBox box{.offset = zero, .size = shape};
  expect_refused([&] { fill_uniform(out, tensor, box, 1.0, 0.0); }, "got 1 and 0");
  expect_refused([&] { fill_normal(out, tensor, box, 0.0, -1.0); }, "got 0 and -1");
  expect_refused(
      [&] {
        fill_truncated_normal(
            out, tensor, box,
            {.mean = 0.0, .standard_deviation = 0.0, .low = -1.0, .high = 1.0});
      },
      "standard deviation 0");
  expect_refused(
      [&] {
        fill_truncated_normal(
            out, tensor, box,
            {.mean = 0.0, .standard_deviation = 1.0, .low = 50.0, .high = 60.0});
      },
      "[50, 60] has no probability");
}

}  // namespace
}  // namespace torchtitan::base
