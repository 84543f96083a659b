// Every layout gives the loss and all gradients of plain autograd over one process.
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <set>

#include "train/differences.h"

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

std::vector<std::pair<std::string, Layout>> tensor_layouts() {
  std::vector<std::pair<std::string, Layout>> all = {
      {"Tp2", {.tensor = 2}},
      {"Tp4", {.tensor = 4}},
      {"Fsdp2Tp2", {.shards = 2, .tensor = 2}},
      {"Fsdp3Tp2Never", {.shards = 3, .tensor = 2, .reshard = plan::Reshard::kNever}},
      {"Ddp2Tp2", {.replicas = 2, .tensor = 2}},
      {"Hsdp2x2Tp2", {.shards = 2, .replicas = 2, .tensor = 2}}};
  const size_t count = all.size();
  for (size_t i = 0; i < count; ++i) {
    auto layout = all[i].second;
    layout.loss_parallel = false;
    all.push_back({all[i].first + "WholeLogits", layout});
    layout = all[i].second;
    layout.overlap = nn::Overlap::kRing;
    all.push_back({all[i].first + "Ring", layout});
  }
  return all;
}

class TensorLayoutTest
    : public ::testing::TestWithParam<std::pair<std::string, Layout>> {};

TEST_P(TensorLayoutTest, EqualsPlainAutograd) {
  expect_equal_training(tensor_problem(), GetParam().second);
}

TEST_P(TensorLayoutTest, EqualsPlainAutogradWithThreeMicrobatchesOverFiveSteps) {
  auto layout = GetParam().second;
  layout.num_microbatches = 3;
  auto problem = tensor_problem();
  problem.rows = 36;
  problem.num_steps = 5;
  expect_equal_training(problem, layout);
}

TEST_P(TensorLayoutTest, EqualsPlainAutogradWithTiedEmbeddingsAndRecomputedBlocks) {
  auto layout = GetParam().second;
  layout.recompute = true;
  layout.num_microbatches = 2;
  auto problem = tensor_problem();
  problem.rows = 24;
  problem.args.tied_embeddings = true;
  problem.last_masked = 5;
  expect_equal_training(problem, layout);
}

INSTANTIATE_TEST_SUITE_P(Equality, TensorLayoutTest,
                         ::testing::ValuesIn(tensor_layouts()),
                         [](const auto& info) { return info.param.first; });

// Each method over two and four ranks with each balance, and with other axes.
std::vector<std::pair<std::string, Layout>> context_layouts() {
  using parallel::context::Balance;
  using parallel::context::Method;
  const std::pair<const char*, Layout> bases[] = {
      {"Cp2", {.context = 2}},
      {"Cp4", {.context = 4}},
      {"Fsdp2Cp2", {.shards = 2, .context = 2, .reshard = plan::Reshard::kNever}},
      {"Ddp2Cp2", {.replicas = 2, .context = 2}},
      {"Cp2Tp2", {.context = 2, .tensor = 2}},
      {"Hsdp2x2Cp2Tp2Ring",
       {.shards = 2,
        .replicas = 2,
        .context = 2,
        .tensor = 2,
        .overlap = nn::Overlap::kRing}}};
  const std::pair<const char*, Method> methods[] = {{"Gather", Method::kAllGather},
                                                    {"Around", Method::kRing},
                                                    {"Ulysses", Method::kUlysses}};
  const std::pair<const char*, Balance> balances[] = {{"HeadTail", Balance::kHeadTail},
                                                      {"InOrder", Balance::kInOrder},
                                                      {"ByWork", Balance::kByWork}};
  std::vector<std::pair<std::string, Layout>> all;
  for (const auto& [name, base] : bases) {
    for (const auto& [method_name, method] : methods) {
      for (const auto& [balance_name, balance] : balances) {
        const bool alone = base.num_ranks() == base.context;
        if (!alone && balance != Balance::kHeadTail) continue;
        auto layout = base;
        layout.method = method;
        layout.balance = balance;
        all.push_back({std::string(name) + method_name + balance_name, layout});
      }
    }
  }
  return all;
}

// Every method and balance, and both kinds of other axes, in a few of them.
std::vector<std::pair<std::string, Layout>> some_context_layouts() {
  const std::set<std::string> names = {"Cp2GatherHeadTail",    "Cp2AroundByWork",
                                       "Cp2UlyssesInOrder",    "Cp4AroundHeadTail",
                                       "Cp2Tp2GatherHeadTail", "Fsdp2Cp2AroundHeadTail",
                                       "Cp2Tp2UlyssesHeadTail"};
  auto all = context_layouts();
  std::erase_if(all, [&](const auto& each) { return !names.contains(each.first); });
  return all;
}

class ContextLayoutTest
    : public ::testing::TestWithParam<std::pair<std::string, Layout>> {};

TEST_P(ContextLayoutTest, EqualsPlainAutogradWithinDocuments) {
  auto problem = with_documents(context_problem());
  problem.last_masked = 4;  // no valid label in the first rows
  expect_equal_training(problem, GetParam().second);
}

INSTANTIATE_TEST_SUITE_P(Equality, ContextLayoutTest,
                         ::testing::ValuesIn(some_context_layouts()),
                         [](const auto& info) { return info.param.first; });

class ContextLayoutSlow : public ContextLayoutTest {};

TEST_P(ContextLayoutSlow, EqualsPlainAutograd) {
  auto problem = context_problem();
  problem.last_masked = 4;
  expect_equal_training(problem, GetParam().second);
}

TEST_P(ContextLayoutSlow, EqualsPlainAutogradWithThreeMicrobatchesOfRecomputedBlocks) {
  auto layout = GetParam().second;
  layout.num_microbatches = 3;
  layout.recompute = true;
  auto problem = context_problem();
  problem.num_steps = 2;
  expect_equal_training(problem, layout);
}

TEST_P(ContextLayoutSlow, EqualsPlainAutogradWithinDocuments) {
  expect_equal_training(with_documents(context_problem()), GetParam().second);
}

INSTANTIATE_TEST_SUITE_P(Equality, ContextLayoutSlow,
                         ::testing::ValuesIn(context_layouts()),
                         [](const auto& info) { return info.param.first; });

TEST(Equality, WithinDocumentsOnOneRankAndDividedByTensorRanks) {
  for (const auto& layout :
       {Layout{}, Layout{.shards = 2, .recompute = true}, Layout{.tensor = 2}}) {
    expect_equal_training(with_documents(tensor_problem()), layout);
  }
}

TEST(Equality, DocumentsChangeTheLoss) {
  EXPECT_NE(run_step(with_documents(tensor_problem()), {}).loss,
            run_step(tensor_problem(), {}).loss);
}

TEST(Equality, BlocksThatRunAgainGiveTheSameBits) {
  for (Layout layout : {Layout{}, Layout{.shards = 2, .tensor = 2}}) {
    const auto kept = run_step(tensor_problem(), layout);
    layout.recompute = true;
    const auto again = run_step(tensor_problem(), layout);
    EXPECT_EQ(again.loss, kept.loss);
    for (const auto& [name, gradient] : kept.gradients) {
      EXPECT_TRUE(at::equal(again.gradients.at(name), gradient)) << name;
    }
  }
}

TEST(Equality, ATensorRankWithoutAnyClassOfTheVocabulary) {
  // Two classes each for the first two ranks, one for the third, none for the last.
  auto problem = tensor_problem();
  problem.args.vocab_size = 5;
  for (const bool loss_parallel : {true, false}) {
    expect_equal_training(problem, {.tensor = 4, .loss_parallel = loss_parallel});
  }
}

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
