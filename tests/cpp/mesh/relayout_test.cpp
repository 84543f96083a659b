#include "mesh/relayout.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>

namespace torchtitan::mesh {
namespace {

using Sizes = std::vector<int64_t>;

// Calls `visit` with every index of a tensor of this shape, in row-major order.
void for_each_index(const Sizes& shape,
                    const std::function<void(const Sizes&)>& visit) {
  const int64_t num_elements =
      std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  Sizes index(shape.size(), 0);
  for (int64_t element = 0; element < num_elements; ++element) {
    visit(index);
    for (size_t dim = shape.size(); dim-- > 0;) {
      if (++index[dim] < shape[dim]) break;
      index[dim] = 0;
    }
  }
}

int64_t flat(const Sizes& index, const Sizes& shape) {
  int64_t result = 0;
  for (size_t dim = 0; dim < shape.size(); ++dim) {
    result = result * shape[dim] + index[dim];
  }
  return result;
}

Sizes plus(Sizes a, const Sizes& b) {
  for (size_t dim = 0; dim < a.size(); ++dim) a[dim] += b[dim];
  return a;
}

// The shards of the tensor whose element i has the value i.
std::vector<Sizes> numbered_shards(const Layout& layout) {
  std::vector<Sizes> shards;
  for (const Coordinates& writer : layout.writers()) {
    const Box box = layout.box(writer);
    Sizes& shard = shards.emplace_back();
    for_each_index(box.size, [&](const Sizes& index) {
      shard.push_back(flat(plus(index, box.offset), layout.global_shape()));
    });
  }
  return shards;
}

// Moves the elements one by one as the copies say.
std::vector<Sizes> run_copies(const Layout& from, const Layout& to) {
  const std::vector<Sizes> sources = numbered_shards(from);
  std::vector<Sizes> targets;
  for (const Coordinates& writer : to.writers()) {
    targets.emplace_back(to.box(writer).num_elements(), -1);
  }
  for (const Copy& copy : relayout(from, to)) {
    const Box source = from.box(from.writers()[copy.source]);
    const Box target = to.box(to.writers()[copy.target]);
    const Sizes read = relative_to(copy.box, source).offset;
    const Sizes write = relative_to(copy.box, target).offset;
    for_each_index(copy.box.size, [&](const Sizes& index) {
      targets[copy.target][flat(plus(index, write), target.size)] =
          sources[copy.source][flat(plus(index, read), source.size)];
    });
  }
  return targets;
}

TEST(Relayout, MovesEveryElementBetweenAnyTwoLayouts) {
  const Sizes shape{7, 5};
  const std::vector<Layout> layouts{
      Layout(shape),
      Layout(shape, {{"fsdp", 2, 0}}),
      Layout(shape, {{"fsdp", 3, 0}}, {{"dp_replicate", 2}}),
      Layout(shape, {{"fsdp", 12, 0}}),
      Layout(shape, {{"tp", 2, 1}, {"fsdp", 3, 0}}),
      Layout(shape, {{"tp", 2, 0}, {"fsdp", 3, 0}}),
      Layout(shape, {{"ep", 3, 0, {0, 1, 1, 7}}, {"etp", 2, 1}}),
      Layout(shape, {{.axis = "tp", .parts = 3, .dim = 1, .repeat = 2}}),
  };
  for (const Layout& from : layouts) {
    for (const Layout& to : layouts) {
      EXPECT_EQ(run_copies(from, to), numbered_shards(to));
    }
  }
}

TEST(Relayout, MovesScalarsAndNothingForEmptyTensors) {
  EXPECT_EQ(run_copies(Layout({}), Layout({}, {}, {{"world", 2}})),
            (std::vector<Sizes>{{0}}));
  EXPECT_TRUE(relayout(Layout({0, 3}, {{"fsdp", 2, 0}}), Layout({0, 3})).empty());
}

TEST(Relayout, AnUnchangedLayoutCopiesEachShardToItself) {
  const Layout layout({8, 4}, {{"fsdp", 4, 0}});
  const std::vector<Copy> copies = relayout(layout, layout);
  ASSERT_EQ(copies.size(), 4u);
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(copies[i], (Copy{i, i, layout.box({{"fsdp", i}})}));
  }
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Relayout, RefusesSourcesThatMissOrRepeatElements) {
  const Box target{{2}, {4}};
  const std::vector<Box> gap{{{0}, {3}}, {{4}, {4}}};
  EXPECT_EQ(
      refusal([&] { copies_into(gap, target); }),
      "copies_into: the sources hold 3 of the 4 elements of the target (offset [2] "
      "size [4])");
  const std::vector<Box> twice{{{0}, {4}}, {{3}, {5}}};
  EXPECT_EQ(refusal([&] { copies_into(twice, target); }),
            "copies_into: sources 0 (offset [0] size [4]) and 1 (offset [3] size [5]) "
            "overlap");
  const std::vector<Box> beside{{{0}, {2}}, {{2}, {4}}, {{6}, {9}}};
  EXPECT_EQ(copies_into(beside, target), (std::vector<Copy>{{1, 0, target}}));
}

TEST(Relayout, RefusesOtherShapesAndBoxesOutsideAShard) {
  EXPECT_EQ(refusal([] { relayout(Layout({2, 3}), Layout({3, 2})); }),
            "relayout: the tensors have shapes [2, 3] and [3, 2]");
  EXPECT_EQ(
      refusal([] { relative_to({{0}, {4}}, {{1}, {4}}); }),
      "relative_to: the box offset [0] size [4] is not inside the shard offset [1] "
      "size [4]");
  EXPECT_NE(refusal([] { intersection({{0}, {4}}, {{0, 0}, {4, 4}}); }).find("1 and 2"),
            std::string::npos);
}

}  // namespace
}  // namespace torchtitan::mesh
