#include "generation/sampler.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "generation/error_message.h"

namespace torchtitan::generation {
namespace {

using TokenRows = std::vector<std::vector<int64_t>>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Of one prompt, many tokens from the same logits.
std::vector<int64_t> draw(const SamplingOptions& options, const at::Tensor& logits,
                          int64_t count, uint64_t seed = 1) {
  const Sampler sampler(options, seed, {{1, 2}});
  std::vector<int64_t> drawn;
  for (int64_t i = 0; i < count; ++i) {
    drawn.push_back(sampler.choose(logits.unsqueeze(0), {0}, i)[0]);
  }
  return drawn;
}

std::vector<double> shares(const std::vector<int64_t>& drawn, int64_t classes) {
  std::vector<double> found(static_cast<size_t>(classes), 0.0);
  for (const int64_t token : drawn) {
    found.at(static_cast<size_t>(token)) += 1.0 / static_cast<double>(drawn.size());
  }
  return found;
}

TEST(Sampler, TakesTheFirstOfTheMostLikelyWithoutTemperature) {
  const auto logits = at::tensor({0.5, 2.0, -1.0, 2.0});
  EXPECT_EQ(draw({.temperature = 0, .top_k = std::nullopt}, logits, 3),
            (std::vector<int64_t>{1, 1, 1}));
}

TEST(Sampler, DrawsByTheSoftmaxOfTheTemperature) {
  const auto logits = at::tensor({1.0, 3.0, 0.0, 2.0, -kInfinity});
  for (const double temperature : {0.5, 1.0, 3.0}) {
    const int64_t count = 20000;
    const auto found = shares(
        draw({.temperature = temperature, .top_k = std::nullopt}, logits, count), 5);
    const auto expected = at::softmax(logits.div(temperature), 0);
    for (int64_t i = 0; i < 5; ++i) {
      const double p = expected[i].item<double>();
      // Five standard deviations.
      EXPECT_NEAR(found[static_cast<size_t>(i)], p,
                  5 * std::sqrt(p * (1 - p) / static_cast<double>(count)) + 1e-12)
          << "class " << i << " at temperature " << temperature;
    }
  }
}

TEST(Sampler, DrawsFromTheTopKWithThoseThatAreEquallyLikely) {
  const auto logits = at::tensor({1.0, 3.0, 0.0, 1.0, -2.0});
  const auto found = shares(draw({.temperature = 1, .top_k = 2}, logits, 2000), 5);
  EXPECT_GT(found[0], 0.02);
  EXPECT_GT(found[1], 0.5);
  EXPECT_GT(found[3], 0.02);
  EXPECT_EQ(found[2], 0);
  EXPECT_EQ(found[4], 0);
  EXPECT_EQ(draw({.temperature = 9, .top_k = 1}, logits, 3),
            (std::vector<int64_t>{1, 1, 1}));
  EXPECT_EQ(draw({.temperature = 1, .top_k = 99}, logits, 50),
            draw({.temperature = 1, .top_k = std::nullopt}, logits, 50));
}

TEST(Sampler, DrawsTheSameForASeedWhateverTheBatch) {
  const SamplingOptions options{.temperature = 1, .top_k = std::nullopt};
  const auto logits = at::zeros({1, 1000});
  const Sampler alone(options, 7, {{4, 5}});
  const Sampler among(options, 7, TokenRows{{9}, {4, 5}, {4}, {4, 5}});
  const Sampler other(options, 8, {{4, 5}});
  int64_t equal_copies = 0, equal_seeds = 0;
  for (int64_t i = 0; i < 20; ++i) {
    const auto one = alone.choose(logits, {0}, i)[0];
    const auto many = among.choose(logits.expand({3, 1000}), {0, 1, 3}, i);
    EXPECT_EQ(many[1], one);
    equal_copies += many[2] == one;
    equal_seeds += other.choose(logits, {0}, i)[0] == one;
  }
  EXPECT_LT(equal_copies, 3);
  EXPECT_LT(equal_seeds, 3);
}

TEST(Sampler, RefusesBadOptionsAndLogits) {
  EXPECT_EQ(message([] { Sampler({.temperature = -1, .top_k = {}}, 1, {{1}}); }),
            "temperature: expected a finite number >= 0, found -1");
  EXPECT_EQ(message([] { Sampler({.temperature = 1, .top_k = 0}, 1, {{1}}); }),
            "top_k: expected at least 1, found 0");
  const Sampler sampler({.temperature = 1, .top_k = {}}, 1, {{1}, {2}});
  const auto bad = at::tensor({0.0, NAN, 1.0, 2.0}).view({2, 2});
  EXPECT_EQ(message([&] { sampler.choose(bad, {0, 1}, 0); }),
            "the logits of row 0 are not finite: the largest is nan");
  EXPECT_EQ(message([&] { sampler.choose(bad, {0}, 0); }),
            "choose: expected logits [1, vocabulary], got [2, 2]");
}

}  // namespace
}  // namespace torchtitan::generation
