#include "mesh/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>

namespace torchtitan::mesh {
namespace {

using Sizes = std::vector<int64_t>;

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

// How often each element of the tensor is held by a writer.
std::vector<int> coverage(const Layout& layout) {
  const Sizes& shape = layout.global_shape();
  int64_t num_elements = 1;
  for (const int64_t size : shape) num_elements *= size;
  std::vector<int> count(num_elements, 0);
  for (const Coordinates& writer : layout.writers()) {
    const Box box = layout.box(writer);
    for (int64_t element = 0; element < num_elements; ++element) {
      bool inside = true;
      int64_t rest = element;
      for (size_t dim = shape.size(); dim-- > 0; rest /= shape[dim]) {
        const int64_t index = rest % shape[dim];
        inside = inside && index >= box.offset[dim] &&
                 index < box.offset[dim] + box.size[dim];
      }
      count[element] += inside;
    }
  }
  return count;
}

TEST(Layout, WithoutSplitsEveryRankHoldsTheWholeTensor) {
  const Layout layout({3, 4}, {}, {{"dp_replicate", 2}});
  EXPECT_EQ(layout.box({}), (Box{{0, 0}, {3, 4}}));
  EXPECT_EQ(layout.num_shards(), 1);
  EXPECT_TRUE(layout.is_writer({{"dp_replicate", 0}}));
  EXPECT_FALSE(layout.is_writer({{"dp_replicate", 1}}));
  EXPECT_EQ(Layout({}).box({}).num_elements(), 1);
}

TEST(Layout, DefaultBoundariesAreThoseOfTorchChunk) {
  // torch.chunk(torch.arange(9), 4): lengths 3, 3, 3, and a fourth rank without
  // elements.
  const Layout nine({9}, {{"fsdp", 4, 0}});
  EXPECT_EQ(nine.box({{"fsdp", 0}}), (Box{{0}, {3}}));
  EXPECT_EQ(nine.box({{"fsdp", 2}}), (Box{{6}, {3}}));
  EXPECT_EQ(nine.box({{"fsdp", 3}}), (Box{{9}, {0}}));
  const Layout vocabulary({257, 8}, {{"fsdp", 4, 0}});
  EXPECT_EQ(vocabulary.box({{"fsdp", 3}}), (Box{{195, 0}, {62, 8}}));
  EXPECT_EQ(vocabulary.largest_shard_elements(), 65 * 8);
  const Layout tiny({2}, {{"fsdp", 4, 0}});
  EXPECT_EQ(tiny.box({{"fsdp", 1}}), (Box{{1}, {1}}));
  EXPECT_EQ(tiny.box({{"fsdp", 2}}), (Box{{2}, {0}}));
  const Layout none({0, 5}, {{"fsdp", 3, 0}});
  EXPECT_EQ(none.box({{"fsdp", 1}}).num_elements(), 0);
}

TEST(Layout, SecondSplitOfADimCutsThePieceOfTheFirst) {
  const Layout layout({10, 3}, {{"tp", 2, 0}, {"fsdp", 2, 0}});
  EXPECT_EQ(layout.box({{"tp", 0}, {"fsdp", 0}}), (Box{{0, 0}, {3, 3}}));
  EXPECT_EQ(layout.box({{"tp", 0}, {"fsdp", 1}}), (Box{{3, 0}, {2, 3}}));
  EXPECT_EQ(layout.box({{"tp", 1}, {"fsdp", 0}}), (Box{{5, 0}, {3, 3}}));
  EXPECT_EQ(layout.box({{"tp", 1}, {"fsdp", 1}}), (Box{{8, 0}, {2, 3}}));
}

TEST(Layout, ExplicitBoundariesPlaceWholeExperts) {
  const Layout layout({8, 2}, {{"ep", 3, 0, {0, 4, 4, 8}}, {"tp", 2, 1}});
  EXPECT_EQ(layout.box({{"ep", 1}, {"tp", 0}}).num_elements(), 0);
  EXPECT_EQ(layout.box({{"ep", 2}, {"tp", 1}}), (Box{{4, 1}, {4, 1}}));
  EXPECT_EQ(layout.largest_shard_elements(), 4);
}

TEST(Layout, RepeatedPartsAreHeldByNeighboursAndWrittenByTheFirst) {
  const Layout heads({4, 5}, {{.axis = "tp", .parts = 4, .dim = 0, .repeat = 2}});
  EXPECT_EQ(heads.box({{"tp", 6}}), heads.box({{"tp", 7}}));
  EXPECT_EQ(heads.box({{"tp", 7}}), (Box{{3, 0}, {1, 5}}));
  EXPECT_TRUE(heads.is_writer({{"tp", 6}}));
  EXPECT_FALSE(heads.is_writer({{"tp", 7}}));
  EXPECT_EQ(heads.writers()[3], (Coordinates{{"tp", 6}}));
}

TEST(Layout, WritersHoldEveryElementExactlyOnce) {
  const std::vector<Layout> layouts{
      Layout({7}, {{"fsdp", 3, 0}}),
      Layout({7, 5}, {{"tp", 2, 1}, {"fsdp", 4, 0}}, {{"dp_replicate", 2}}),
      Layout({7, 5}, {{"tp", 3, 0}, {"fsdp", 2, 0}, {"cp", 2, 0}}),
      Layout({3, 2, 4}, {{"ep", 2, 0, {0, 1, 3}}, {"fsdp", 3, 2}}),
      Layout({5, 4}, {{.axis = "tp", .parts = 2, .dim = 1, .repeat = 3}}),
      Layout({}, {}, {{"world", 4}}),
  };
  for (const Layout& layout : layouts) {
    for (const int count : coverage(layout)) EXPECT_EQ(count, 1);
    EXPECT_EQ(static_cast<int64_t>(layout.writers().size()), layout.num_shards());
    int64_t largest = 0;
    for (const Coordinates& writer : layout.writers()) {
      EXPECT_TRUE(layout.is_writer(writer));
      largest = std::max(largest, layout.box(writer).num_elements());
    }
    EXPECT_EQ(layout.largest_shard_elements(), largest);
  }
}

TEST(Layout, RanksOfAMeshHoldOneWriterPerBox) {
  const Mesh mesh({.dp_replicate = 2,
                   .dp_shard = 2,
                   .cp = 1,
                   .tp = 2,
                   .pp = 1,
                   .ep = 1,
                   .etp = 1,
                   .world_size = 8});
  const Layout layout({6, 5}, {{"tp", 2, 1}, {"fsdp", 2, 0}}, {{"dp_replicate", 2}});
  std::map<std::pair<Sizes, Sizes>, int> writers;
  for (int64_t rank = 0; rank < 8; ++rank) {
    const Coordinates at = mesh.coordinates(rank);
    const Box box = layout.box(at);
    writers[{box.offset, box.size}] += layout.is_writer(at);
  }
  EXPECT_EQ(writers.size(), 4u);
  for (const auto& [box, count] : writers) EXPECT_EQ(count, 1);
}

TEST(Layout, RefusesWhatDoesNotFitTheTensor) {
  EXPECT_EQ(refusal([] { Layout({-1}); }), "layout: a tensor has no dim of size -1");
  EXPECT_EQ(refusal([] { Layout({4}, {{"tp", 2, 1}}); }),
            "layout: the split over 'tp' cuts dim 1 of a tensor of 1 dims");
  EXPECT_EQ(refusal([] { Layout({4, 4}, {{"tp", 2, 0}, {"tp", 2, 1}}); }),
            "layout: axis 'tp' is used twice");
  EXPECT_EQ(refusal([] { Layout({4}, {{"tp", 2, 0}}, {{"tp", 2}}); }),
            "layout: axis 'tp' is used twice");
  EXPECT_NE(refusal([] { Layout({4}, {{"tp", 0, 0}}); }).find("0 parts"),
            std::string::npos);
  EXPECT_EQ(refusal([] { Layout({4}, {}, {{"dp_replicate", 0}}); }),
            "layout: replicated axis 'dp_replicate' has size 0");
  EXPECT_EQ(refusal([] { Layout({4}, {{"ep", 2, 0, {0, 4}}}); }),
            "layout: the split over 'ep' has 2 parts and needs 3 boundaries, got 2");
  EXPECT_NE(
      refusal([] { Layout({4}, {{"ep", 2, 0, {0, 5, 4}}}); }).find("never decrease"),
      std::string::npos);
  EXPECT_EQ(
      refusal([] { Layout({4}, {{"ep", 2, 0, {0, 2, 5}}}); }),
      "layout: boundaries of the split over 'ep' end at 5, but it cuts a piece of "
      "extent 4");
  EXPECT_NE(refusal([] {
              Layout({5}, {{"tp", 2, 0}, {"ep", 2, 0, {0, 1, 3}}});
            }).find("pieces of several extents"),
            std::string::npos);
}

TEST(Layout, RefusesCoordinatesThatDoNotFit) {
  const Layout layout({4}, {{"fsdp", 2, 0}}, {{"dp_replicate", 2}});
  EXPECT_EQ(refusal([&] { layout.box({{"tp", 0}}); }),
            "layout: the coordinates lack axis 'fsdp'");
  EXPECT_EQ(refusal([&] { layout.box({{"fsdp", 2}}); }),
            "layout: coordinate 2 on axis 'fsdp' of size 2");
  EXPECT_EQ(refusal([&] { layout.is_writer({{"fsdp", 1}}); }),
            "layout: the coordinates lack axis 'dp_replicate'");
  EXPECT_EQ(refusal([&] { layout.is_writer({{"fsdp", 1}, {"dp_replicate", 2}}); }),
            "layout: coordinate 2 on axis 'dp_replicate' of size 2");
}

}  // namespace
}  // namespace torchtitan::mesh
