// A backward in two halves gives the gradients of one, and does nothing twice.
#include "nn/split_backward.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/cpp_hook.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>

#include "nn/segment.h"

namespace torchtitan::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor leaf(double start) {
  auto value = at::linspace(start, start + 1, 9, at::kDouble).view({3, 3});
  value.set_requires_grad(true);
  value.mutable_grad() = at::ones_like(value);
  return value;
}

torch::autograd::edge_list edges_of(const TensorList& outputs) {
  torch::autograd::edge_list edges;
  for (const auto& output : outputs) {
    edges.push_back(torch::autograd::impl::gradient_edge(output));
  }
  return edges;
}

using Function =
    std::function<TensorList(const TensorList& inputs, const TensorList& w)>;

struct Result {
  TensorList inputs, weights;
};

// Gradients of two inputs and of three weights, which had ones.
Result run(const Function& function, bool split) {
  TensorList inputs = {leaf(0.2), leaf(0.5)};
  TensorList weights = {leaf(-0.3), leaf(0.1), leaf(0.7)};
  const auto outputs = function(inputs, weights);
  TensorList gradients;
  for (const auto& output : outputs) {
    gradients.push_back(
        at::linspace(1, 2, output.numel(), at::kDouble).view(output.sizes()));
  }
  Result result;
  if (!split) {
    for (auto& input : inputs) input.mutable_grad().reset();
    torch::autograd::backward(outputs, gradients);
    for (const auto& input : inputs) result.inputs.push_back(input.grad());
  } else {
    std::unique_ptr<RestOfBackward> rest;
    result.inputs = split_backward(edges_of(outputs), gradients, inputs, &rest);
    for (const auto& each : {weights, inputs}) {
      for (const auto& untouched : each) {
        EXPECT_TRUE(untouched.grad().eq(1).all().item<bool>());
      }
    }
    if (rest) rest->run();
  }
  for (const auto& weight : weights) result.weights.push_back(weight.grad());
  return result;
}

void expect_equal(const Function& function, double tolerance = 0) {
  const auto whole = run(function, false);
  const auto halves = run(function, true);
  for (size_t i = 0; i < whole.inputs.size(); ++i) {
    ASSERT_EQ(whole.inputs[i].defined(), halves.inputs[i].defined()) << i;
    if (!whole.inputs[i].defined()) continue;
    EXPECT_TRUE(at::equal(halves.inputs[i], whole.inputs[i])) << "input " << i;
  }
  for (size_t i = 0; i < whole.weights.size(); ++i) {
    EXPECT_TRUE(at::allclose(halves.weights[i], whole.weights[i], tolerance, tolerance))
        << "weight " << i;
  }
}

TEST(SplitBackward, OfAChain) {
  expect_equal([](const TensorList& x, const TensorList& w) -> TensorList {
    return {at::linear(at::linear(x[0], w[0]).tanh(), w[1]).add(x[1].mul(w[2])).sin()};
  });
}

TEST(SplitBackward, OfSeveralOutputsOneOfWhichDependsOnNoInput) {
  expect_equal([](const TensorList& x, const TensorList& w) -> TensorList {
    return {x[0].mul(w[0]), w[1].exp().mul(w[2]), x[1]};
  });
}

TEST(SplitBackward, OfInputsThatNothingUses) {
  expect_equal([](const TensorList& /*x*/, const TensorList& w) -> TensorList {
    return {w[0].mul(w[1])};
  });
}

TEST(SplitBackward, OfAWeightUsedTwiceAndOfAFunctionOfWeightsThatPartsShare) {
  expect_equal(
      [](const TensorList& x, const TensorList& w) -> TensorList {
        const auto shared = w[0].mul(w[1]).exp();
        return {at::matmul(at::matmul(x[0], shared).sin(), shared).add(x[1].mul(w[1]))};
      },
      1e-12);
}

TEST(SplitBackward, HooksSeeAndChangeEachGradientAsInOneBackward) {
  expect_equal([](const TensorList& x, const TensorList& w) -> TensorList {
    const auto between = at::linear(x[0], w[0]);
    between.register_hook([](const at::Tensor& gradient) { return gradient.mul(3); });
    return {at::linear(between, w[1]).mul(x[1])};
  });
}

// Counts how often each of its gradients is asked for.
struct Asked {
  int input = 0, weight = 0;
};
Asked asked;
struct Product final : torch::autograd::Function<Product> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& w) {
    ctx->save_for_backward({x, w});
    return x.mul(w);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(2);
    if (ctx->needs_input_grad(0)) {
      ++asked.input;
      result[0] = gradients[0].mul(saved[1]);
    }
    if (ctx->needs_input_grad(1)) {
      ++asked.weight;
      result[1] = gradients[0].mul(saved[0]);
    }
    return result;
  }
};

TEST(SplitBackward, ComputesEachGradientOnce) {
  asked = {};
  run(
      [](const TensorList& x, const TensorList& w) -> TensorList {
        const auto first = Product::apply(x[0], w[0]);
        return {Product::apply(Product::apply(first, w[1]), w[2])};
      },
      true);
  EXPECT_EQ(asked.input, 3);
  EXPECT_EQ(asked.weight, 3);
}

// What the rest does not need is freed by the first half.
TEST(SplitBackward, FreesWhatOnlyTheFirstHalfNeeds) {
  const auto x = leaf(0.1), w = leaf(0.2);
  auto middle = x.mul(w).sin();
  auto output = middle.exp();  // saves its result
  const c10::weak_intrusive_ptr<c10::TensorImpl> saved(output.getIntrusivePtr());
  const auto storage = output.storage().use_count();
  std::unique_ptr<RestOfBackward> rest;
  const auto kept = output.detach();
  split_backward(edges_of({output}), {at::ones_like(kept)}, {x}, &rest);
  output.reset();
  middle.reset();
  EXPECT_LE(kept.storage().use_count(), storage);
  EXPECT_TRUE(saved.expired());
  rest->run();
}

class Squares final : public AutogradSegment {
 public:
  Squares() : AutogradSegment("squares", {"x", "ids"}, {"y", "z"}, {{0, 0}}) {}
  TensorList compute(const TensorList& inputs, const TensorList& w) const override {
    return {inputs[0].mul(w[0]).square(), inputs[1].add(1)};
  }
  Flops flops(const TensorList& /*i*/, const TensorList& /*w*/) const override {
    return {};
  }
};

TEST(SplitBackward, OfASegment) {
  Squares segment;
  const auto x = leaf(0.3).detach();
  const auto ids = at::ones({2}, at::kLong);
  const auto whole = leaf(0.5), halves = leaf(0.5);
  for (int i = 0; i < 2; ++i) {
    std::unique_ptr<Segment::Saved> saved, rest;
    segment.forward({x, ids}, {whole}, &saved);
    const auto dy = at::rand_like(x);
    const auto expected = segment.backward(std::move(saved), {dy, {}}, {whole});
    segment.forward({x, ids}, {halves}, &saved);
    const auto before = halves.grad().clone();
    const auto found =
        segment.backward_input(std::move(saved), {dy, {}}, {halves}, &rest);
    EXPECT_TRUE(at::equal(halves.grad(), before));
    EXPECT_TRUE(at::equal(found.at(0), expected[0]));
    EXPECT_FALSE(found.at(1).defined());
    segment.backward_weight(std::move(rest), {halves});
    EXPECT_TRUE(at::equal(halves.grad(), whole.grad()));
  }
  // Nothing to do, nothing left.
  std::unique_ptr<Segment::Saved> saved, rest;
  segment.forward({x, ids}, {halves}, &saved);
  segment.backward_input(std::move(saved), {{}, {}}, {halves}, &rest);
  EXPECT_EQ(rest, nullptr);
  segment.backward_weight(nullptr, {halves});
  EXPECT_TRUE(at::equal(halves.grad(), whole.grad()));
}

}  // namespace
}  // namespace torchtitan::nn
