#include "mesh/placements.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

namespace torchtitan::mesh {
namespace {

using enum PlacementKind;

std::string text(const std::vector<Placement>& placements) {
  std::string result;
  for (const Placement& placement : placements) result += to_string(placement) + " ";
  return result;
}

TEST(Placements, WriteOnePlacementPerAxisOfTheDeviceMesh) {
  const std::vector<MeshAxis> axes{{"dp_replicate", 2}, {"fsdp", 4}, {"tp", 2}};
  const Layout wq({8, 6}, {{"tp", 2, 0}, {"fsdp", 4, 0}}, {{"dp_replicate", 2}});
  EXPECT_EQ(text(to_placements(wq, axes)), "Replicate() _StridedShard(0, 2) Shard(0) ");
  const Layout wo({8, 6}, {{"tp", 2, 1}, {"fsdp", 4, 0}}, {{"dp_replicate", 2}});
  EXPECT_EQ(text(to_placements(wo, axes)), "Replicate() Shard(0) Shard(1) ");
  const Layout norm({8}, {{"fsdp", 4, 0}}, {{"dp_replicate", 2}, {"tp", 2}});
  EXPECT_EQ(text(to_placements(norm, axes)), "Replicate() Shard(0) Replicate() ");
  const Layout left_first({8, 6}, {{"fsdp", 4, 0}, {"tp", 2, 0}});
  EXPECT_EQ(text(to_placements(left_first, axes)), "Replicate() Shard(0) Shard(0) ");
}

TEST(Placements, ReadBackWhatTheyWrite) {
  const std::vector<MeshAxis> axes{{"a", 2}, {"b", 3}, {"c", 2}, {"d", 2}};
  const std::vector<std::string> order{"a", "b", "c", "d"};
  // Every subset of axes on dim 0, in every order; the rest on dim 1 or replicated.
  std::vector<size_t> permutation{0, 1, 2, 3};
  do {
    for (int mask = 0; mask < 16; ++mask) {
      std::vector<Split> splits;
      std::vector<Replication> replications;
      for (const size_t i : permutation) {
        if (mask >> i & 1) splits.push_back({axes[i].axis, axes[i].size, 0});
      }
      for (size_t i = 0; i < 4; ++i) {
        if (mask >> i & 1) continue;
        if (i % 2) {
          splits.push_back({axes[i].axis, axes[i].size, 1});
        } else {
          replications.push_back(axes[i]);
        }
      }
      const Layout layout({48, 7}, splits, replications);
      const Layout back = from_placements({48, 7}, axes, to_placements(layout, axes));
      for (const Coordinates& writer : layout.writers()) {
        ASSERT_EQ(back.box(writer), layout.box(writer));
        ASSERT_TRUE(back.is_writer(writer));
      }
    }
  } while (std::next_permutation(permutation.begin(), permutation.end()));
}

TEST(Placements, ReadAStridedShardAsTheLaterSplit) {
  const std::vector<MeshAxis> axes{{"fsdp", 4}, {"tp", 2}};
  const Layout layout = from_placements(
      {8}, axes, std::vector<Placement>{{kStridedShard, 0, 2}, {kShard}});
  EXPECT_EQ(layout.splits(), (std::vector<Split>{{"tp", 2, 0}, {"fsdp", 4, 0}}));
}

TEST(Placements, BoundariesThatEqualChunksMayBeWritten) {
  const std::vector<MeshAxis> axes{{"ep", 2}};
  const Layout same({5}, {{"ep", 2, 0, {0, 3, 5}}});
  EXPECT_EQ(text(to_placements(same, axes)), "Shard(0) ");
}

void expect_refused(const std::function<void()>& call, const std::string& part) {
  try {
    call();
    FAIL() << "accepted, expected: " << part;
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(Placements, RefuseWhatDTensorCannotSay) {
  const std::vector<MeshAxis> axes{{"ep", 2}};
  const auto write = [&](const Layout& layout) {
    return [&axes, layout] { to_placements(layout, axes); };
  };
  expect_refused(write(Layout({5}, {{"ep", 2, 0, {0, 1, 5}}})), "other boundaries");
  expect_refused(
      write(Layout({5}, {{.axis = "ep", .parts = 1, .dim = 0, .repeat = 2}})),
      "cannot repeat parts, as the split over 'ep' does");
  const std::vector<MeshAxis> two{{"fsdp", 3}, {"tp", 2}};
  expect_refused(
      [&] { to_placements(Layout({7}, {{"tp", 2, 0}, {"fsdp", 3, 0}}), two); },
      "cannot split over 'fsdp' what 2 parts of dim 0 of size 7 make");
  expect_refused(
      [&] {
        from_placements({7}, two,
                        std::vector<Placement>{{kStridedShard, 0, 2}, {kShard}});
      },
      "for they are not equal");
  expect_refused(write(Layout({5}, {{"tp", 2, 0}})),
                 "axis 'tp', which the device mesh");
  expect_refused(write(Layout({5}, {}, {{"ep", 3}})),
                 "'ep' has size 2 in the device mesh and 3 in the layout");
}

TEST(Placements, RefuseFactorsAndCountsThatDoNotFitTheMesh) {
  const std::vector<MeshAxis> axes{{"fsdp", 2}, {"cp", 2}, {"tp", 3}};
  const auto read = [&](std::vector<Placement> placements) {
    return [&axes, placements] { from_placements({12}, axes, placements); };
  };
  expect_refused(read({{kStridedShard, 0, 3}, {kShard}, {kShard}}), "split factor 3");
  expect_refused(read({{kReplicate}, {kReplicate}, {kStridedShard, 0, 2}}),
                 "split factor 2 of _StridedShard(0, 2) over 'tp'");
  expect_refused(read({{kShard}}), "3 axes needs as many placements, got 1");
}

}  // namespace
}  // namespace torchtitan::mesh
