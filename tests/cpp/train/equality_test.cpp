// Every layout gives the loss and all gradients of plain autograd over one process.
#include <gtest/gtest.h>

#include "train/tiny_llama.h"

namespace torchtitan::train::testing {
namespace {

void expect_equal_training(const Problem& problem, const Layout& layout) {
  EXPECT_EQ(difference(run_step(problem, layout), run_reference(problem)), "");
}

// The layouts that data parallelism has, by name.
std::vector<std::pair<std::string, Layout>> layouts() {
  std::vector<std::pair<std::string, Layout>> all = {
      {"OneRank", {}},
      {"Ddp2", {.replicas = 2}},
      {"Ddp4", {.replicas = 4}},
      {"Hsdp2x2", {.shards = 2, .replicas = 2}},
  };
  const std::pair<const char*, plan::Reshard> modes[] = {
      {"Always", plan::Reshard::kAlways},
      {"Default", plan::Reshard::kDefault},
      {"Never", plan::Reshard::kNever}};
  for (const int64_t ranks : {2, 3, 4}) {
    for (const auto& [name, mode] : modes) {
      all.push_back(
          {"Fsdp" + std::to_string(ranks) + name, {.shards = ranks, .reshard = mode}});
    }
  }
  return all;
}

class LayoutTest : public ::testing::TestWithParam<std::pair<std::string, Layout>> {};

TEST_P(LayoutTest, EqualsPlainAutograd) {
  expect_equal_training({}, GetParam().second);
}

TEST_P(LayoutTest, EqualsPlainAutogradWithThreeMicrobatchesOverFiveSteps) {
  auto layout = GetParam().second;
  layout.num_microbatches = 3;
  expect_equal_training({.rows = 36, .num_steps = 5}, layout);
}

TEST_P(LayoutTest, EqualsPlainAutogradWhenARankHasNoValidToken) {
  // The first rank's rows have no label that counts.
  const int64_t rows = 12 / GetParam().second.num_ranks();
  expect_equal_training({.first_masked = 0, .last_masked = rows}, GetParam().second);
}

TEST_P(LayoutTest, EqualsPlainAutogradWithTiedEmbeddings) {
  Problem problem{.rows = 36};
  problem.args.tied_embeddings = true;
  auto layout = GetParam().second;
  layout.num_microbatches = 3;
  expect_equal_training(problem, layout);
}

TEST_P(LayoutTest, EqualsPlainAutogradWhenBlocksAreRecomputed) {
  auto layout = GetParam().second;
  layout.recompute = true;
  expect_equal_training({}, layout);
}

TEST_P(LayoutTest, EqualsPlainAutogradWithoutOverlap) {
  auto layout = GetParam().second;
  layout.overlap_depth = 0;
  expect_equal_training({}, layout);
}

INSTANTIATE_TEST_SUITE_P(Equality, LayoutTest, ::testing::ValuesIn(layouts()),
                         [](const auto& info) { return info.param.first; });

TEST(Equality, MoreRanksThanRowsOfANorm) {
  // dim 2: the norms have two rows, so the last of four ranks hold none of them.
  Problem problem;
  problem.args.dim = 2;
  problem.args.n_heads = 1;
  expect_equal_training(problem, {.shards = 4});
}

TEST(Equality, ABatchWithoutAnyValidTokenHasZeroLossAndGradient) {
  const auto result = run_step({.first_masked = 0, .last_masked = 12}, {.shards = 2});
  EXPECT_EQ(result.loss, 0.0);
  EXPECT_EQ(result.grad_norm, 0.0);
}

}  // namespace
}  // namespace torchtitan::train::testing
