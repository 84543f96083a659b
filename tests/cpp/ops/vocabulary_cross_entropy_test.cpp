// Statistics of parts of the vocabulary give the cross-entropy of the whole.
#include "ops/vocabulary_cross_entropy.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "ops/cross_entropy.h"

namespace torchtitan::ops {
namespace {

// Parts that begin at these classes, the second one empty.
constexpr int64_t kFirst[] = {0, 4, 4, 10};
constexpr int64_t kClasses = 11;

struct Problem {
  at::Tensor logits, labels;
  at::Tensor part(int64_t i) const {
    const int64_t end = i < 3 ? kFirst[i + 1] : kClasses;
    return logits.narrow(1, kFirst[i], end - kFirst[i]).clone();
  }
  VocabularyLoss loss() const {
    std::vector<at::Tensor> all;
    for (int64_t i = 0; i < 4; ++i) {
      all.push_back(vocabulary_statistics(part(i), labels, kFirst[i]));
    }
    return vocabulary_cross_entropy(at::stack(all), labels);
  }
};

Problem problem(at::ScalarType dtype) {
  at::manual_seed(1);
  auto labels = at::arange(7, at::kLong).mul(3).remainder(kClasses);
  labels[2].fill_(kIgnoreIndex);
  // Far from zero, so that exp() needs the maximum.
  return {at::randn({7, kClasses}, at::kDouble).mul(30).add(500).to(dtype), labels};
}

TEST(VocabularyCrossEntropy, EqualsTheWholeInValueAndGradient) {
  for (const auto& [dtype, tolerance] :
       {std::pair{at::kDouble, 1e-12}, {at::kFloat, 1e-5}, {at::kBFloat16, 1e-2}}) {
    const auto p = problem(dtype);
    const auto whole = p.logits.to(at::kDouble).set_requires_grad(true);
    const auto expected = cross_entropy_sum(whole, p.labels);
    torch::autograd::backward({expected}, {});
    const auto [sum, log_sum_exp] = p.loss();
    EXPECT_EQ(sum.scalar_type(), at::kDouble);
    EXPECT_TRUE(at::allclose(sum, expected, tolerance, tolerance));
    for (int64_t i = 0; i < 4; ++i) {
      const auto gradient = p.part(i);
      vocabulary_gradient_(gradient, p.labels, kFirst[i], log_sum_exp);
      EXPECT_TRUE(at::allclose(gradient.to(at::kDouble),
                               whole.grad().narrow(1, kFirst[i], gradient.size(1)),
                               tolerance, tolerance));
    }
  }
}

TEST(VocabularyCrossEntropy, AnIgnoredTokenMayHoldAnything) {
  auto p = problem(at::kFloat);
  const auto before = p.loss().sum;
  p.logits[2].fill_(std::numeric_limits<double>::infinity());
  const auto [sum, log_sum_exp] = p.loss();
  EXPECT_TRUE(at::equal(sum, before));
  const auto gradient = p.part(0);
  vocabulary_gradient_(gradient, p.labels, 0, log_sum_exp);
  EXPECT_TRUE(gradient.isfinite().all().item<bool>());
  EXPECT_EQ(gradient[2].abs().sum().item<float>(), 0.0F);
}

TEST(VocabularyCrossEntropy, ANotANumberOfOneRankReachesTheSum) {
  auto p = problem(at::kFloat);
  p.logits[0][9].fill_(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(p.loss().sum.isnan().item<bool>());
}

TEST(VocabularyCrossEntropy, RefusesShapesThatDoNotFit) {
  EXPECT_THROW(vocabulary_statistics(at::zeros({2, 3}), at::zeros({3}, at::kLong), 0),
               c10::ValueError);
}

}  // namespace
}  // namespace torchtitan::ops
