#include "collectives/group.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "collectives/fake_group.h"
#include "collectives/test_support.h"

namespace torchtitan::collectives {
namespace {

using at::Tensor;

TEST(Group, OfSizeOneIsTheIdentity) {
  const Group group("tp");
  EXPECT_EQ(group.rank(), 0);
  EXPECT_EQ(group.size(), 1);
  EXPECT_EQ(group.name(), "tp");
  const Tensor in = at::arange(6, at::kDouble).view({3, 2});
  for (const auto& verb : {0, 1, 2}) {
    const Tensor out = at::zeros({3, 2}, at::kDouble);
    if (verb == 0) group.all_gather(out, in).wait();
    if (verb == 1) group.reduce_scatter(out, in).wait();
    if (verb == 2) group.all_to_all(out, in, {3}, {3}).wait();
    EXPECT_TRUE(at::equal(out, in)) << verb;
  }
  const Tensor same = in.clone();
  group.all_reduce(same, ReduceOp::kMax).wait();
  group.broadcast(same, 0).wait();
  group.barrier().wait();
  EXPECT_TRUE(at::equal(same, in));
}

TEST(Group, DefaultHandleIsComplete) {
  const Handle handle;
  EXPECT_TRUE(handle.completed());
  handle.wait();
}

TEST(Group, RefusesWhatDoesNotFitAtTheDoor) {
  const Group group = fake_group("fsdp", 1, 2);
  const Tensor two = at::zeros({2});
  const Tensor four = at::zeros({4});
  expect_value_error(
      "all_gather: out must have 2 x 4 elements (group 'fsdp'), but has "
      "shape [4]",
      [&] { group.all_gather(four, four); });
  expect_value_error("reduce_scatter: in must have 2 x 2 elements",
                     [&] { group.reduce_scatter(two, two); });
  expect_value_error(
      "all_gather: out and in must have one dtype, but have Float and "
      "Double",
      [&] { group.all_gather(four, two.to(at::kDouble)); });
  expect_value_error("one device, but are on cpu and meta",
                     [&] { group.all_gather(four, two.to(at::kMeta)); });
  expect_value_error("all_reduce: tensor must be contiguous, but has shape [2, 2]",
                     [&] { group.all_reduce(four.view({2, 2}).t()); });
  expect_value_error("all_reduce: tensor is undefined", [&] { group.all_reduce({}); });
  expect_value_error("all_reduce: cannot reduce Bool",
                     [&] { group.all_reduce(two.to(at::kBool)); });
  expect_value_error(
      "broadcast: root must be a rank of group 'fsdp' of size 2, but is 2",
      [&] { group.broadcast(two, 2); });
  expect_value_error("send: peer must be another rank, but 1 is this one",
                     [&] { group.send(two, 1); });
  expect_value_error(
      "out_splits must be 2 counts that sum to the 4 rows of out, but are "
      "[1, 2]",
      [&] { group.all_to_all(four, four, {1, 2}, {2, 2}); });
  expect_value_error("in_splits must be 2 counts",
                     [&] { group.all_to_all(four, four, {2, 2}, {4}); });
  expect_value_error("in_splits must be 2 counts",
                     [&] { group.all_to_all(four, four, {2, 2}, {5, -1}); });
  expect_value_error("rank 1 sends itself 3 rows, but expects 2",
                     [&] { group.all_to_all(four, four, {2, 2}, {1, 3}); });
  expect_value_error("send: peer must be a rank of group 'self' of size 1",
                     [&] { Group().send(two, 1); });
}

TEST(Group, IsMadeForEachAxisAndTheIdentityWhereOneRankIs) {
  const std::vector<AxisRanks> axes{{"dp", {0, 2}}, {"tp", {2}}};
  const GroupMap groups = make_groups(
      axes, 2, [](const AxisRanks& axis) { return fake_group(axis.axis, 1, 2); });
  EXPECT_EQ(groups.at("dp").size(), 2);
  EXPECT_EQ(groups.at("dp").rank(), 1);
  EXPECT_EQ(groups.at("tp").size(), 1);
  EXPECT_EQ(groups.at("tp").name(), "tp");
  const auto none = [](const AxisRanks&) { return Group(); };
  expect_value_error("axis 'dp' lists ranks [0, 2], which lack this rank, 1",
                     [&] { make_groups(axes, 1, none); });
  expect_value_error("axis 'tp' is listed twice",
                     [&] { make_groups({{"tp", {0}}, {"tp", {0}}}, 0, none); });
}

TEST(Group, WorksOnTensorsThatRequireGrad) {
  const Tensor weight = at::ones({2}).requires_grad_(true);
  const Tensor out = at::zeros({4});
  fake_group("fsdp", 0, 2).all_gather(out, weight).wait();
  Group().all_gather(at::zeros({2}), weight).wait();
  EXPECT_FALSE(out.requires_grad());
  EXPECT_TRUE(at::equal(out, at::ones({4})));
}

}  // namespace
}  // namespace torchtitan::collectives
