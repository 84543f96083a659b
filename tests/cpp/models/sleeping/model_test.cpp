#include "models/sleeping/model.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

namespace torchtitan::models::sleeping {
namespace {

using namespace std::chrono_literals;

struct Fixture {
  explicit Fixture(int64_t num_blocks)
      : diary(std::make_shared<Diary>()), model(build(num_blocks, 2ms, diary)) {
    for (int64_t i = 0; i < num_blocks; ++i) {
      weights.push_back(at::full({1}, 0.5));
      weights.back().mutable_grad() = at::zeros({1});
    }
  }

  at::Tensor forward(at::Tensor value) {
    saved.resize(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      value = model.segments[i]->forward({value}, {weights[i]}, &saved[i])[0];
    }
    return value;
  }

  std::shared_ptr<Diary> diary;
  nn::Model model;
  nn::TensorList weights;
  std::vector<std::unique_ptr<nn::Segment::Saved>> saved;
};

TEST(SleepingModel, PassesValuesAndGradients) {
  Fixture f(3);
  EXPECT_EQ(f.forward(at::ones({2, 4})).item<double>(), 8 * 2.5);
  at::Tensor gradient = at::scalar_tensor(3.0, at::kDouble);
  for (size_t i = f.weights.size(); i-- > 0;) {
    gradient = f.model.segments[i]->backward(std::move(f.saved[i]), {gradient},
                                             {f.weights[i]})[0];
    EXPECT_EQ(f.weights[i].grad().item<double>(), 24.0);
  }
  EXPECT_TRUE(at::equal(gradient, at::full({2, 4}, 3.0)));
}

TEST(SleepingModel, NotesEachWork) {
  Fixture f(1);
  const auto start = Diary::Clock::now();
  f.forward(at::ones({1, 1}));
  EXPECT_EQ(f.diary->num_works(), 1);
  std::unique_ptr<nn::Segment::Saved> rest;
  auto& block = *f.model.segments[0];
  block.backward_input(std::move(f.saved[0]), {at::scalar_tensor(1.0)}, {f.weights[0]},
                       &rest);
  EXPECT_EQ(f.diary->num_works(), 2);
  EXPECT_EQ(f.weights[0].grad().item<double>(), 0.0);
  block.backward_weight(std::move(rest), {f.weights[0]});
  EXPECT_EQ(f.diary->num_works(), 3);
  EXPECT_EQ(f.weights[0].grad().item<double>(), 1.0);
  EXPECT_GE(f.diary->busy(), 6ms);
  EXPECT_GE(f.diary->begin(), start);
  EXPECT_GE(f.diary->end() - f.diary->begin(), f.diary->busy());
  f.diary->reset();
  EXPECT_EQ(f.diary->num_works(), 0);
  EXPECT_EQ(f.diary->busy(), Diary::Clock::duration::zero());
}

TEST(SleepingModel, HasABlock) {
  EXPECT_THROW(build(0, 1ms, std::make_shared<Diary>()), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::models::sleeping
