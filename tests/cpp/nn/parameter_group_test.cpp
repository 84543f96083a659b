#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "nn/initialize.h"
#include "nn/whole_group.h"

namespace torchtitan::nn {
namespace {

ParameterGroupSpec spec() {
  return {"block",
          {{"w", {5, 3}, Init::normal(1.0)},
           {"b", {4}, Init::constant(2.0)},
           {"t", {7, 2}, Init::truncated_normal(1.0, -0.5, 0.25)}}};
}

GroupOptions options(at::ScalarType master, at::ScalarType compute) {
  return {.master_dtype = master,
          .compute_dtype = compute,
          .reduce_dtype = at::kFloat,
          .device = at::Device(at::kCPU)};
}

TEST(WholeGroup, LeavesAreTheMasterValuesWhereDtypesAgree) {
  WholeGroup group(spec(), options(at::kFloat, at::kFloat), collectives::Group("dp"));
  group.initialize(1);
  EXPECT_EQ(group.leaves()[1].data_ptr(), group.shards()[1].value.data_ptr());
  EXPECT_TRUE(group.leaves()[0].requires_grad());
  EXPECT_TRUE(at::equal(group.leaves()[1], at::full({4}, 2.0f)));
}

TEST(WholeGroup, LeavesAreCastByARefreshWhereDtypesDiffer) {
  WholeGroup group(spec(), options(at::kFloat, at::kBFloat16),
                   collectives::Group("dp"));
  group.initialize(1);
  group.refresh();
  group.zero_gradient();
  for (size_t slot = 0; slot < 3; ++slot) {
    EXPECT_TRUE(
        at::equal(group.leaves()[slot], group.shards()[slot].value.to(at::kBFloat16)));
    EXPECT_EQ(group.leaves()[slot].grad().scalar_type(), at::kFloat);
  }
}

TEST(WholeGroup, AStepBeginsWithZeroGradientsInPlace) {
  WholeGroup group(spec(), options(at::kFloat, at::kFloat), collectives::Group("dp"));
  group.zero_gradient();
  group.leaves()[0].mutable_grad().add_(3.0);
  EXPECT_EQ(group.gradient().sum().item<float>(), 45.0f);
  group.zero_gradient();
  EXPECT_EQ(group.gradient().sum().item<float>(), 0.0f);
}

TEST(ParameterGroup, RefusesAViewOfAnotherSize) {
  WholeGroup group(spec(), options(at::kFloat, at::kFloat), collectives::Group("dp"));
  EXPECT_EQ(group.shard_views(group.master()).size(), 3u);
  EXPECT_THROW(group.shard_views(at::zeros({3})), c10::ValueError);
}

TEST(FillInitial, RowsAreThoseOfTheWholeParameter) {
  for (const auto& parameter : spec().parameters) {
    const auto whole = at::empty(parameter.shape);
    fill_initial(whole, parameter, 0, 11);
    auto shape = parameter.shape;
    shape[0] = 2;
    const auto rows = at::empty(shape);
    fill_initial(rows, parameter, 1, 11);
    EXPECT_TRUE(at::equal(rows, whole.narrow(0, 1, 2))) << parameter.name;
  }
}

TEST(FillInitial, RespectsCutoffsSeedsAndWiderDtypes) {
  const ParameterSpec parameter{
      "t", {1000, 10}, Init::truncated_normal(1.0, -0.5, 0.25)};
  const auto values = at::empty({1000, 10});
  fill_initial(values, parameter, 0, 1);
  EXPECT_GE(values.min().item<float>(), -0.5f);
  EXPECT_LE(values.max().item<float>(), 0.25f);
  const auto other = at::empty({1000, 10});
  fill_initial(other, parameter, 0, 2);
  EXPECT_FALSE(at::equal(values, other));
  const auto wide = at::empty({1000, 10}, at::kDouble);
  fill_initial(wide, parameter, 0, 1);
  EXPECT_TRUE(at::equal(wide, values.to(at::kDouble)));
}

}  // namespace
}  // namespace torchtitan::nn
