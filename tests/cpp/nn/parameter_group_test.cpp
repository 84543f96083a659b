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
    fill_initial(whole, parameter, parameter.offset(), 11);
    auto shape = parameter.shape;
    shape[0] = 2;
    const auto rows = at::empty(shape);
    auto offset = parameter.offset();
    offset[0] = 1;
    fill_initial(rows, parameter, offset, 11);
    EXPECT_TRUE(at::equal(rows, whole.narrow(0, 1, 2))) << parameter.name;
  }
}

TEST(FillInitial, APieceHasTheNumbersOfItsPlaceInTheWhole) {
  const ParameterSpec whole{"t", {6, 10}, Init::normal(1.0)};
  const ParameterSpec piece{
      "t", {6, 4}, Init::normal(1.0), Piece{.whole_shape = {6, 10}, .offset = {0, 5}}};
  const auto all = at::empty({6, 10});
  fill_initial(all, whole, whole.offset(), 3);
  WholeGroup group({"g", {piece}}, options(at::kFloat, at::kFloat),
                   collectives::Group("dp"));
  group.initialize(3);
  const auto& shard = group.shards()[0];
  EXPECT_TRUE(at::equal(shard.value, all.narrow(1, 5, 4)));
  EXPECT_EQ(shard.global_shape, whole.shape);
  EXPECT_EQ(shard.offset, (std::vector<int64_t>{0, 5}));
}

TEST(ParameterGroup, CountsInTheNormWhatNoEarlierRankHas) {
  const auto spec = [](const char* name, bool is_first_copy) {
    return ParameterSpec{.name = name,
                         .shape = {2},
                         .init = Init::constant(1.0),
                         .is_first_copy = is_first_copy};
  };
  WholeGroup group({"g",
                    {spec("a", false), spec("b", true), spec("c", true),
                     spec("d", false), spec("e", true)}},
                   options(at::kFloat, at::kFloat), collectives::Group("dp"));
  group.gradient().copy_(at::arange(10, at::kFloat));
  const auto counted = at::cat(group.counted_gradients());
  EXPECT_TRUE(at::equal(counted, at::tensor({2, 3, 4, 5, 8, 9}, at::kFloat)));
  EXPECT_EQ(group.counted_gradients().size(), 2u);
  EXPECT_FALSE(group.shards()[0].is_writer);
  EXPECT_TRUE(group.shards()[1].is_writer);
}

TEST(FillInitial, RespectsCutoffsSeedsAndWiderDtypes) {
  const ParameterSpec parameter{
      "t", {1000, 10}, Init::truncated_normal(1.0, -0.5, 0.25)};
  const auto values = at::empty({1000, 10});
  fill_initial(values, parameter, {0, 0}, 1);
  EXPECT_GE(values.min().item<float>(), -0.5f);
  EXPECT_LE(values.max().item<float>(), 0.25f);
  const auto other = at::empty({1000, 10});
  fill_initial(other, parameter, {0, 0}, 2);
  EXPECT_FALSE(at::equal(values, other));
  const auto wide = at::empty({1000, 10}, at::kDouble);
  fill_initial(wide, parameter, {0, 0}, 1);
  EXPECT_TRUE(at::equal(wide, values.to(at::kDouble)));
}

}  // namespace
}  // namespace torchtitan::nn
