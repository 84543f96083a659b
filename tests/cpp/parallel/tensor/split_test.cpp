// Pieces of all ranks cover each parameter once.
#include "parallel/tensor/split.h"

#include <gtest/gtest.h>

#include "collectives/fake_group.h"

namespace torchtitan::parallel::tensor {
namespace {

constexpr Rule kRules[] = {{"wide.weight", 0}, {"deep.weight", 1}};

std::vector<nn::ParameterGroupSpec> groups() {
  const auto init = nn::Init::constant(0.0);
  return {{"a", {{"x.wide.weight", {5, 3}, init}, {"x.deep.weight", {3, 4}, init}}},
          {"b", {{"norm.weight", {3}, init}, {"wide.weight", {2, 3}, init}}},
          {"c", {{"otherwide.weight", {4, 4}, init}}}};
}

std::vector<nn::ParameterGroupSpec> split_for(int64_t rank, int64_t ranks) {
  auto all = groups();
  split(all, kRules, collectives::fake_group("tp", rank, ranks));
  return all;
}

TEST(Split, CutsLikeTorchChunk) {
  std::vector<int64_t> rows, offsets;
  for (int64_t rank = 0; rank < 4; ++rank) {
    const auto spec = split_for(rank, 4)[0].parameters[0];
    rows.push_back(spec.shape[0]);
    offsets.push_back(spec.offset()[0]);
    EXPECT_EQ(spec.shape[1], 3);
    EXPECT_EQ(spec.whole_shape(), (std::vector<int64_t>{5, 3}));
    EXPECT_TRUE(spec.is_first_copy);
  }
  EXPECT_EQ(rows, (std::vector<int64_t>{2, 2, 1, 0}));
  EXPECT_EQ(offsets, (std::vector<int64_t>{0, 2, 4, 5}));
}

TEST(Split, CutsInputsOfAProduct) {
  const auto spec = split_for(1, 2)[0].parameters[1];
  EXPECT_EQ(spec.shape, (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(spec.offset(), (std::vector<int64_t>{0, 2}));
}

TEST(Split, LeavesCopiesOfWhatNoRuleNames) {
  for (const int64_t rank : {0, 1}) {
    const auto all = split_for(rank, 2);
    for (const auto& spec : {all[1].parameters[0], all[2].parameters[0]}) {
      EXPECT_FALSE(spec.piece.has_value()) << spec.name;
      EXPECT_EQ(spec.is_first_copy, rank == 0) << spec.name;
    }
  }
}

TEST(Split, TakesFullNamesToo) {
  auto all = groups();
  const std::map<std::string, int64_t> dims = {{"wide.weight", 1}, {"of nobody", 7}};
  split(all, dims, collectives::fake_group("tp", 1, 2));
  EXPECT_FALSE(all[0].parameters[0].piece.has_value()) << "x.wide.weight ends like it";
  EXPECT_FALSE(all[0].parameters[0].is_first_copy);
  EXPECT_EQ(all[1].parameters[1].shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(all[1].parameters[1].offset(), (std::vector<int64_t>{0, 2}));
  EXPECT_TRUE(all[1].parameters[1].is_first_copy);
}

TEST(Split, ChangesNothingForOneRank) {
  for (const auto& group : split_for(0, 1)) {
    for (const auto& spec : group.parameters) {
      EXPECT_FALSE(spec.piece.has_value());
      EXPECT_TRUE(spec.is_first_copy);
    }
  }
}

TEST(Split, RefusesADimThatIsNotThere) {
  std::vector<nn::ParameterGroupSpec> all = {
      {"g", {{"deep.weight", {3}, nn::Init::constant(0.0)}}}};
  EXPECT_THROW(split(all, kRules, collectives::fake_group("tp", 0, 2)),
               c10::ValueError);
}

}  // namespace
}  // namespace torchtitan::parallel::tensor
