// A segment called from a larger graph gives the gradients of the undivided graph.
#include "nn/detached_call.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

namespace torchtitan::nn {
namespace {

// Notes what the calls ask for, as "F1" and "B0".
class Notes final : public Progress {
 public:
  explicit Notes(bool is_divided = false) : is_divided_(is_divided) {}

  void reach_forward(int64_t segment) override {
    text.append("F").append(std::to_string(segment));
  }
  bool reach_backward(int64_t segment,
                      const std::function<void()>& recompute) override {
    text.append("B").append(std::to_string(segment));
    recompute();
    return is_divided_;
  }
  void at_backward_weight(int64_t segment, std::function<void()> weight) override {
    text.append("W").append(std::to_string(segment));
    weights.push_back(std::move(weight));
  }

  std::string text;
  std::vector<std::function<void()>> weights;

 private:
  bool is_divided_;
};

at::Tensor leaf(double start) {
  return at::linspace(start, start + 1, 6, at::kDouble)
      .view({2, 3})
      .set_requires_grad(true);
}

TensorList block(const TensorList& inputs, const at::Tensor& weight) {
  return {inputs[0].mul(weight).sin(), inputs[0].add(inputs[1]).mul(weight)};
}

// Two blocks with values that skip over them and a trunk that all parts share.
at::Tensor model(const at::Tensor& x, const TensorList& weights,
                 const std::function<TensorList(int64_t, const TensorList&)>& call) {
  const auto trunk = x.mul(weights[2]).exp();
  const auto first = call(0, {trunk.mul(2), trunk});
  const auto second = call(1, {first[0].add(trunk), first[1]});
  return second[0].mul(first[1]).add(second[1]).add(trunk).sum();
}

void expect_equal_gradients(bool is_divided) {
  TensorList plain{leaf(0.1), leaf(0.4), leaf(0.7), leaf(1)};
  TensorList divided{leaf(0.1), leaf(0.4), leaf(0.7), leaf(1)};
  const auto expected =
      model(plain[3], plain, [&](int64_t s, const TensorList& inputs) {
        return block(inputs, plain[static_cast<size_t>(s)]);
      });
  torch::autograd::backward({expected}, {});
  Notes notes(is_divided);
  const auto loss =
      model(divided[3], divided, [&](int64_t s, const TensorList& inputs) {
        return detached_call(
            s, inputs,
            [&, s](const TensorList& detached) {
              return block(detached, divided[static_cast<size_t>(s)]);
            },
            {}, notes);
      });
  EXPECT_EQ(notes.text, "F0F1F1F2");
  torch::autograd::backward({loss}, {});
  EXPECT_EQ(notes.text, is_divided ? "F0F1F1F2B1W1B0W0" : "F0F1F1F2B1B0");
  EXPECT_EQ(divided[0].grad().defined(), !is_divided);
  for (const auto& weight : notes.weights) weight();
  EXPECT_EQ(loss.item<double>(), expected.item<double>());
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_TRUE(at::allclose(divided[i].grad(), plain[i].grad(), 1e-13, 0)) << i;
  }
}

TEST(DetachedCall, GivesTheGradientsOfOneGraph) { expect_equal_gradients(false); }

TEST(DetachedCall, GivesTheGradientsOfOneGraphInTwoHalves) {
  expect_equal_gradients(true);
}

TEST(DetachedCall, GivesGradientsOfParametersWhereNoInputHasOne) {
  const auto weight = leaf(0.5);
  Notes notes;
  const auto results = detached_call(
      0, {at::ones({2, 3}, at::kDouble)},
      [&](const TensorList& inputs) { return TensorList{inputs[0].mul(weight)}; }, {},
      notes);
  torch::autograd::backward({results[0].sum()}, {});
  EXPECT_TRUE(at::equal(weight.grad(), at::ones({2, 3}, at::kDouble)));
}

TEST(DetachedCall, KeepsNoGraphOutsideOfGradMode) {
  const c10::AutoGradMode off(false);
  const auto weight = leaf(0.5);
  Notes notes;
  const auto results = detached_call(
      0, {leaf(0)},
      [&](const TensorList& inputs) { return block({inputs[0], weight}, weight); }, {},
      notes);
  EXPECT_FALSE(results[0].requires_grad());
  EXPECT_EQ(notes.text, "F0F1");
}

TEST(DetachedCall, PassesResultsWithoutGradientThrough) {
  Notes notes;
  const auto results = detached_call(
      0, {leaf(0)},
      [](const TensorList& inputs) {
        return TensorList{inputs[0].argmax(), inputs[0]};
      },
      {}, notes);
  EXPECT_FALSE(results[0].requires_grad());
  EXPECT_TRUE(results[1].requires_grad());
}

TEST(DetachedCall, RunsAgainOnItsInputsAtItsBackward) {
  Notes notes;
  const auto x = leaf(0);
  TensorList seen;
  const auto results = detached_call(
      0, {x}, [](const TensorList& inputs) { return TensorList{inputs[0].exp()}; },
      [&](const TensorList& inputs) {
        EXPECT_TRUE(c10::GradMode::is_enabled());
        EXPECT_EQ(notes.text, "F0F1B0");
        seen = inputs;
      },
      notes);
  EXPECT_TRUE(seen.empty());
  torch::autograd::backward({results[0].sum()}, {});
  ASSERT_EQ(seen.size(), 1);
  EXPECT_TRUE(at::equal(seen[0], x));
  EXPECT_TRUE(seen[0].requires_grad());
}

TEST(DetachedCall, KeepsNoResultAlive) {
  Notes notes;
  auto results = detached_call(
      0, {leaf(0)},
      [](const TensorList& inputs) { return TensorList{inputs[0].mul(2)}; }, {}, notes);
  EXPECT_EQ(results[0].storage().use_count(), 1);
}

TEST(DetachedCall, RefusesToRecomputeFromChangedInputs) {
  Notes notes;
  const auto x = leaf(0).mul(2);
  const auto results = detached_call(
      0, {x}, [](const TensorList& inputs) { return TensorList{inputs[0].exp()}; },
      [](const TensorList& /*inputs*/) {}, notes);
  x.mul_(2);
  try {
    torch::autograd::backward({results[0].sum()}, {});
    FAIL() << "expected an error";
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("changed in place"), std::string::npos);
  }
}

}  // namespace
}  // namespace torchtitan::nn
