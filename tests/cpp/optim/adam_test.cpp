#include "optim/adam.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

namespace torchtitan::optim {
namespace {

ops::AdamScalars scalars(double step, double clip = 1.0, double finite = 1.0) {
  const auto scalar = [](double value) {
    return at::scalar_tensor(value, at::kDouble);
  };
  return {.learning_rate = scalar(1e-2),
          .step = scalar(step),
          .clip = scalar(clip),
          .finite = scalar(finite)};
}

AdamConfig config(bool decoupled, Implementation implementation, at::ScalarType dtype) {
  return {.update = {.beta1 = 0.9,
                     .beta2 = 0.95,
                     .eps = 1e-8,
                     .weight_decay = 0.1,
                     .decoupled = decoupled},
          .implementation = implementation,
          .state_dtype = dtype};
}

// Numbers that no formula below uses, of both signs.
at::Tensor numbers(int64_t seed, at::ScalarType dtype) {
  return at::arange(1000, at::kDouble)
      .mul(0.37)
      .add(static_cast<double>(seed))
      .sin()
      .to(dtype);
}

at::Tensor train(bool decoupled, Implementation implementation, at::ScalarType dtype,
                 at::ScalarType state) {
  const Target target{numbers(0, dtype), at::empty({1000}, dtype)};
  Adam adam({target}, config(decoupled, implementation, state));
  for (int step = 1; step <= 3; ++step) {
    target.gradient.copy_(numbers(step, dtype));
    adam.step(0, scalars(step, 0.5));
  }
  return target.parameter;
}

// Equations of the papers, one element at a time.
at::Tensor by_hand(bool decoupled) {
  auto parameter = numbers(0, at::kDouble);
  auto* p = parameter.mutable_data_ptr<double>();
  std::vector<double> m(1000, 0.0);
  std::vector<double> v(1000, 0.0);
  for (int step = 1; step <= 3; ++step) {
    const auto gradient = numbers(step, at::kDouble);
    for (int64_t i = 0; i < 1000; ++i) {
      double g = 0.5 * gradient.const_data_ptr<double>()[i];
      if (!decoupled) g += 0.1 * p[i];
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.95 * v[i] + 0.05 * g * g;
      const double m_hat = m[i] / (1 - std::pow(0.9, step));
      const double v_hat = v[i] / (1 - std::pow(0.95, step));
      if (decoupled) p[i] -= 1e-2 * 0.1 * p[i];
      p[i] -= 1e-2 * m_hat / (std::sqrt(v_hat) + 1e-8);
    }
  }
  return parameter;
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return a.to(at::kDouble).sub(b.to(at::kDouble)).abs().max().item<double>();
}

TEST(Adam, FusedAndReferenceFollowThePapers) {
  for (const bool decoupled : {true, false}) {
    const auto expected = by_hand(decoupled);
    for (const auto implementation :
         {Implementation::kFused, Implementation::kReference}) {
      EXPECT_LT(
          largest_difference(train(decoupled, implementation, at::kDouble, at::kDouble),
                             expected),
          1e-12);
      EXPECT_LT(largest_difference(
                    train(decoupled, implementation, at::kFloat, at::kFloat), expected),
                1e-5);
    }
  }
}

TEST(Adam, StateMayBeBfloat16) {
  // Each moment is rounded to 8 bits; the update is off by that much of a step of lr.
  EXPECT_LT(
      largest_difference(train(true, Implementation::kFused, at::kFloat, at::kBFloat16),
                         by_hand(true)),
      3 * 1e-2 * 0.05);
}

TEST(Adam, ChangesNothingWhenTheStepIsNotFinite) {
  for (const auto implementation :
       {Implementation::kFused, Implementation::kReference}) {
    const Target target{numbers(0, at::kFloat), numbers(1, at::kFloat)};
    target.gradient[3] = std::numeric_limits<float>::quiet_NaN();
    Adam adam({target}, config(true, implementation, at::kFloat));
    adam.step(0, scalars(1, std::numeric_limits<double>::quiet_NaN(), 0.0));
    EXPECT_TRUE(at::equal(target.parameter, numbers(0, at::kFloat)));
    EXPECT_EQ(adam.exp_avg(0).abs().sum().item<float>(), 0.0f);
    EXPECT_EQ(adam.exp_avg_sq(0).abs().sum().item<float>(), 0.0f);
  }
}

TEST(Adam, RefusesAGradientOfAnotherSize) {
  Adam adam({{at::zeros({4}), at::zeros({5})}},
            config(true, Implementation::kFused, at::kFloat));
  EXPECT_THROW(adam.step(0, scalars(1)), c10::ValueError);
}

}  // namespace
}  // namespace torchtitan::optim
