// Every layout gives the loss and all gradients of plain autograd over one process.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "train/tiny_llama.h"

namespace torchtitan::train::testing {
namespace {

// |value - reference| <= tolerance * |reference| in the 2-norm, absolute where it is 0.
void expect_close(const NamedTensors& values, const NamedTensors& references,
                  double tolerance, double absolute) {
  ASSERT_EQ(values.size(), references.size());
  for (const auto& [name, reference] : references) {
    const double norm = reference.norm().item<double>();
    const double error = values.at(name).sub(reference).norm().item<double>();
    EXPECT_LE(error, norm > 0 ? tolerance * norm : absolute) << name;
  }
}

void expect_equal_training(const Problem& problem, const Layout& layout) {
  const auto reference = run_reference(problem);
  const auto result = run_step(problem, layout);
  EXPECT_NEAR(result.loss, reference.loss, 1e-10 * std::abs(reference.loss));
  EXPECT_NEAR(result.grad_norm, reference.grad_norm, 1e-10 * reference.grad_norm);
  expect_close(result.gradients, reference.gradients, 1e-10, 1e-12);
  expect_close(result.weights, reference.weights, 1e-9, 1e-12);
}

TEST(Equality, OneRankEqualsPlainAutograd) { expect_equal_training({}, {}); }

TEST(Equality, GradientAccumulationEqualsOneBatch) {
  expect_equal_training({}, {.num_microbatches = 3});
}

TEST(Equality, FiveStepsOfAdamWKeepTheWeightsEqual) {
  expect_equal_training({.num_steps = 5}, {.num_microbatches = 3});
}

}  // namespace
}  // namespace torchtitan::train::testing
