// Whatever is computed again instead of kept, a step has the bits of one that keeps
// all.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "train/tiny_llama.h"

namespace torchtitan::train::testing {
namespace {

using parallel::activation_checkpoint::Policy;
using Mode = Policy::Mode;

std::vector<std::pair<std::string, Layout>> layouts() {
  using parallel::context::Method;
  return {
      {"OneRank", {.num_microbatches = 2}},
      {"Fsdp2", {.shards = 2, .num_microbatches = 3}},
      {"Tp2", {.tensor = 2}},
      {"Fsdp2Tp2Ring", {.shards = 2, .tensor = 2, .overlap = nn::Overlap::kRing}},
      {"Cp2Ring", {.context = 2, .method = Method::kRing}},
      {"Cp2AllGatherTp2", {.context = 2, .method = Method::kAllGather, .tensor = 2}},
      {"Cp2Ulysses", {.context = 2, .method = Method::kUlysses}},
      {"Fsdp2Pp2ZeroBubble",
       {.shards = 2,
        .reshard = plan::Reshard::kAlways,
        .pipeline = 2,
        .schedule = "ZBVZeroBubble",
        .stages_per_rank = 2,
        .num_microbatches = 3}}};
}

std::vector<std::pair<std::string, Policy>> policies() {
  std::vector<std::pair<std::string, Policy>> all = {
      {"by operation", {.mode = Mode::kPerOperation}},
      {"by operation, wq recomputed",
       {.mode = Mode::kPerOperation, .recomputed_modules = {"attention.wq"}}}};
  for (const double budget : {0.0, 0.25, 0.5, 0.75}) {
    all.push_back({"budget " + std::to_string(budget),
                   {.mode = Mode::kMemoryBudget, .budget = budget}});
  }
  return all;
}

class CheckpointingTest
    : public ::testing::TestWithParam<std::pair<std::string, Layout>> {};

TEST_P(CheckpointingTest, ChangesNoBit) {
  auto problem = tensor_problem();
  problem.args.n_layers = 4;
  auto layout = GetParam().second;
  const auto expected = run_step(problem, layout);
  for (const auto& [name, policy] : policies()) {
    layout.checkpoint = policy;
    const auto found = run_step(problem, layout);
    EXPECT_EQ(found.loss, expected.loss) << name;
    EXPECT_EQ(found.grad_norm, expected.grad_norm) << name;
    for (const auto& [parameter, gradient] : expected.gradients) {
      EXPECT_TRUE(at::equal(found.gradients.at(parameter), gradient))
          << name << ": " << parameter;
    }
    const auto recomputes = [](const plan::Action& action) {
      return action.kind == plan::ActionKind::kRecompute;
    };
    EXPECT_TRUE(std::any_of(found.program.begin(), found.program.end(), recomputes))
        << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, CheckpointingTest, ::testing::ValuesIn(layouts()),
                         [](const auto& info) { return info.param.first; });

}  // namespace
}  // namespace torchtitan::train::testing
