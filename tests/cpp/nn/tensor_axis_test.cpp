// Gathers and sums of token stretches, at once or around a ring.
#include "nn/tensor_axis.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "collectives/local_world.h"
#include "collectives/recording.h"

namespace torchtitan::nn {
namespace {

constexpr int64_t kRanks = 3;

void on_each_rank(Overlap overlap, const std::function<void(const TensorAxis&)>& body) {
  const collectives::LocalWorld world(kRanks, std::chrono::seconds(60));
  world.run([&](int64_t rank) { body(TensorAxis(world.group(rank, "tp"), overlap)); });
}

class TensorAxisTest : public ::testing::TestWithParam<Overlap> {};

TEST_P(TensorAxisTest, GathersEveryRowOnceAndShowsItWhenItIsThere) {
  on_each_rank(GetParam(), [](const TensorAxis& axis) {
    const auto whole = at::arange(24, at::kDouble).view({6, 4});
    const auto shown = at::zeros_like(whole);
    const auto all =
        axis.gather(whole.narrow(0, 2 * axis.rank(), 2).contiguous(),
                    [&](int64_t first, const at::Tensor& rows) {
                      shown.narrow(0, first, rows.size(0)).add_(rows).add_(1);
                    });
    EXPECT_TRUE(at::equal(all, whole));
    EXPECT_TRUE(at::equal(shown, whole.add(1)));
  });
}

TEST_P(TensorAxisTest, SumsWhatEachRankProducesForEachStretch) {
  on_each_rank(GetParam(), [](const TensorAxis& axis) {
    const auto whole = at::arange(24, at::kDouble).view({6, 4});
    const auto partial = whole.mul(static_cast<double>(axis.rank() + 1));
    const auto own =
        axis.start_sum_scatter(6, whole,
                               [&](int64_t first, const at::Tensor& out) {
                                 out.copy_(partial.narrow(0, first, out.size(0)));
                               })
            .wait();
    EXPECT_TRUE(at::equal(own, whole.narrow(0, 2 * axis.rank(), 2).mul(6)));
  });
}

INSTANTIATE_TEST_SUITE_P(Overlaps, TensorAxisTest,
                         ::testing::Values(Overlap::kNone, Overlap::kRing),
                         [](const auto& info) {
                           return info.param == Overlap::kRing ? "Ring" : "None";
                         });

TEST(TensorAxis, RefusesTokensThatCannotBeDealtOut) {
  on_each_rank(Overlap::kNone, [](const TensorAxis& axis) {
    EXPECT_THROW(axis.sum_scatter(at::zeros({4, 2})), c10::ValueError);
    EXPECT_THROW(
        axis.start_sum_scatter(4, at::zeros({4, 2}), [](int64_t, const at::Tensor&) {}),
        c10::ValueError);
  });
}

TEST(TensorAxis, SumsTheGradientOfASharedParameterInFloat) {
  const collectives::LocalWorld world(kRanks, std::chrono::seconds(60));
  world.run([&](int64_t rank) {
    const auto recorder = std::make_shared<collectives::Recorder>();
    const TensorAxis axis(collectives::recorded(world.group(rank, "tp"), recorder),
                          Overlap::kNone);
    const auto weight = at::ones({5}, at::kBFloat16).set_requires_grad(true);
    torch::autograd::backward({shared_by_ranks(weight, axis).sum()}, {});
    EXPECT_EQ(weight.grad().scalar_type(), at::kBFloat16);
    EXPECT_TRUE(at::equal(weight.grad(), at::full({5}, 3, at::kBFloat16)));
    EXPECT_EQ(recorder->totals().at({"tp", "all_reduce"}).bytes, 5 * 4);
  });
}

}  // namespace
}  // namespace torchtitan::nn
