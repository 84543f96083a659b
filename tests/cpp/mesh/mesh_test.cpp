#include "mesh/mesh.h"

#include <gtest/gtest.h>

#include <set>

namespace torchtitan::mesh {
namespace {

using Ranks = std::vector<int64_t>;

const ParallelDims kAll{.dp_replicate = 2,
                        .dp_shard = 3,
                        .cp = 2,
                        .tp = 2,
                        .pp = 2,
                        .ep = 3,
                        .etp = 2,
                        .world_size = 48};

TEST(Mesh, OrdersRanksFromPipelineToTensor) {
  const Mesh mesh(kAll);
  int64_t rank = 0;
  for (int64_t pp = 0; pp < 2; ++pp) {
    for (int64_t replica = 0; replica < 2; ++replica) {
      for (int64_t shard = 0; shard < 3; ++shard) {
        for (int64_t cp = 0; cp < 2; ++cp) {
          for (int64_t tp = 0; tp < 2; ++tp, ++rank) {
            Coordinates at = mesh.coordinates(rank);
            EXPECT_EQ(at["pp"], pp);
            EXPECT_EQ(at["dp_replicate"], replica);
            EXPECT_EQ(at["dp_shard"], shard);
            EXPECT_EQ(at["cp"], cp);
            EXPECT_EQ(at["tp"], tp);
            EXPECT_EQ(at["batch"], replica * 3 + shard);
            EXPECT_EQ(at["fsdp"], shard * 2 + cp);
            EXPECT_EQ(at["loss"], (replica * 3 + shard) * 2 + cp);
            EXPECT_EQ(at["world"], rank);
            EXPECT_EQ(at["etp"], tp);
            EXPECT_EQ(at["ep"], (shard * 2 + cp) % 3);
            EXPECT_EQ(at["efsdp"], (shard * 2 + cp) / 3);
          }
        }
      }
    }
  }
  EXPECT_EQ(rank, mesh.world_size());
}

TEST(Mesh, EveryAxisPartitionsTheWorldIntoGroupsThatAgree) {
  const Mesh mesh(kAll);
  for (const std::string& axis : mesh.axes()) {
    std::set<Ranks> groups;
    for (int64_t rank = 0; rank < mesh.world_size(); ++rank) {
      const Ranks group = mesh.ranks(axis, rank);
      ASSERT_EQ(static_cast<int64_t>(group.size()), mesh.size(axis));
      ASSERT_EQ(group[mesh.coordinate(rank, axis)], rank) << axis;
      for (const int64_t peer : group) ASSERT_EQ(mesh.ranks(axis, peer), group) << axis;
      groups.insert(group);
    }
    EXPECT_EQ(static_cast<int64_t>(groups.size()), mesh.world_size() / mesh.size(axis));
  }
}

TEST(Mesh, ReplicaAndShardGroupsCoverAPipelineStage) {
  const Mesh mesh(kAll);
  std::set<int64_t> reached;
  for (const int64_t replica : mesh.ranks("dp_replicate", 30)) {
    for (const int64_t shard : mesh.ranks("fsdp", replica)) {
      for (const int64_t part : mesh.ranks("tp", shard)) reached.insert(part);
    }
  }
  EXPECT_EQ(reached.size(), 24u);
  EXPECT_EQ(*reached.begin(), 24);
}

TEST(Mesh, WithoutExpertParallelismExpertAxesAreTheDenseOnes) {
  ParallelDims dims = kAll;
  dims.ep = 1;
  dims.etp = 1;
  const Mesh mesh(dims);
  EXPECT_EQ(mesh.ranks("efsdp", 17), mesh.ranks("fsdp", 17));
  EXPECT_EQ(mesh.ranks("etp", 17), mesh.ranks("tp", 17));
  EXPECT_EQ(mesh.ranks("ep", 17), (Ranks{17}));
}

TEST(Mesh, AnswersForOneRank) {
  const Mesh mesh({.dp_replicate = 1,
                   .dp_shard = -1,
                   .cp = 1,
                   .tp = 1,
                   .pp = 1,
                   .ep = 1,
                   .etp = 1,
                   .world_size = 1});
  EXPECT_EQ(mesh.dims().dp_shard, 1);
  for (const std::string& axis : mesh.axes())
    EXPECT_EQ(mesh.ranks(axis, 0), (Ranks{0}));
}

TEST(Mesh, RefusesUnknownAxesAndRanks) {
  const Mesh mesh(kAll);
  try {
    mesh.size("dp");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "mesh: there is no axis 'dp'; the axes are world pp dp_replicate "
                 "dp_shard cp tp batch fsdp loss efsdp ep etp");
  }
  try {
    mesh.coordinate(48, "tp");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "mesh: rank 48 is outside the world of 48 ranks");
  }
  EXPECT_THROW(mesh.ranks("tp", -1), std::invalid_argument);
  EXPECT_THROW(mesh.coordinates(48), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::mesh
