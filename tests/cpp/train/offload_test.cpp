// What waits for its backward in host memory changes no bit of a step, and the memory
// of the device is free meanwhile.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "core/cpu_allocator.h"
#include "plan/verify.h"
#include "train/tiny_llama.h"

namespace torchtitan::train::testing {
namespace {

using parallel::activation_checkpoint::Policy;
using Mode = Policy::Mode;

std::vector<std::pair<std::string, Layout>> layouts() {
  return {
      {"OneRank", {.num_microbatches = 2}},
      {"Fsdp2",
       {.shards = 2, .reshard = plan::Reshard::kAlways, .num_microbatches = 3}},
      {"Tp2Cp2",
       {.context = 2, .method = parallel::context::Method::kAllGather, .tensor = 2}},
      {"Pp2OneF", {.pipeline = 2, .num_microbatches = 4}},
      {"Fsdp2Pp2ZeroBubble",
       {.shards = 2,
        .pipeline = 2,
        .schedule = "ZBVZeroBubble",
        .stages_per_rank = 2,
        .num_microbatches = 3}},
      {"Pp2DualPipeV",
       {.pipeline = 2,
        .schedule = "DualPipeV",
        .stages_per_rank = 2,
        .num_microbatches = 4}},
      {"WithoutOverlap", {.num_microbatches = 2, .overlap_depth = 0}}};
}

std::vector<std::pair<std::string, Policy>> policies() {
  return {{"none", {.mode = Mode::kNone}},
          {"full", {.mode = Mode::kFull}},
          {"every 2nd", {.mode = Mode::kSelective, .every = 2}},
          {"by operation", {.mode = Mode::kPerOperation}}};
}

int64_t count(const plan::Program& program, plan::ActionKind kind) {
  return std::count_if(program.begin(), program.end(),
                       [&](const plan::Action& action) { return action.kind == kind; });
}

class OffloadTest : public ::testing::TestWithParam<std::pair<std::string, Layout>> {};

TEST_P(OffloadTest, ChangesNoBit) {
  auto problem = tensor_problem();
  problem.args.n_layers = 6;
  problem.num_steps = 2;
  for (const auto& [name, policy] : policies()) {
    auto layout = GetParam().second;
    layout.checkpoint = policy;
    const auto expected = run_step(problem, layout);
    EXPECT_EQ(count(expected.program, plan::ActionKind::kOffload), 0) << name;
    layout.host = nn::copies_on_host();
    const auto found = run_step(problem, layout);
    EXPECT_GT(count(found.program, plan::ActionKind::kOffload), 0) << name;
    plan::verify(found.program, found.shape, plan::ProgramKind::kTraining);
    EXPECT_GT(layout.host->memory().peak(), 0) << name;
    EXPECT_EQ(layout.host->memory().live(), 0) << name;
    EXPECT_EQ(found.loss, expected.loss) << name;
    EXPECT_EQ(found.grad_norm, expected.grad_norm) << name;
    for (const auto& [parameter, gradient] : expected.gradients) {
      EXPECT_TRUE(at::equal(found.gradients.at(parameter), gradient))
          << name << ": " << parameter;
    }
    for (const auto& [parameter, weight] : expected.weights) {
      EXPECT_TRUE(at::equal(found.weights.at(parameter), weight))
          << name << ": " << parameter;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, OffloadTest, ::testing::ValuesIn(layouts()),
                         [](const auto& info) { return info.param.first; });

TEST(Offload, NothingMovesWhereHostMemoryIsTheDevices) {
  auto problem = tensor_problem();
  problem.args.n_layers = 5;
  Layout layout;
  const auto expected = run_step(problem, layout);
  layout.host = nn::host_is_device();
  const auto found = run_step(problem, layout);
  EXPECT_GT(count(found.program, plan::ActionKind::kOffload), 0);
  EXPECT_TRUE(found.shape.host_is_device);
  EXPECT_EQ(layout.host->memory().peak(), 0);
  EXPECT_EQ(found.loss, expected.loss);
  EXPECT_EQ(found.grad_norm, expected.grad_norm);
}

// Sizes at which activations outweigh everything else.
TEST(Offload, FreesTheMemoryOfTheDevice) {
  auto problem = tensor_problem();
  problem.args.n_layers = 12;
  problem.args.max_seq_len = problem.seq_len = 512;
  problem.rows = 4;
  auto& memory = core::cpu_memory();
  for (const auto mode : {Mode::kNone, Mode::kFull}) {
    Layout layout{.checkpoint = {.mode = mode}};
    const auto peak = [&] {
      const int64_t before = memory.live();
      memory.reset_peak();
      run_step(problem, layout);
      return memory.peak() - before;
    };
    peak();
    const int64_t kept = peak();
    layout.host = nn::copies_on_host();
    const int64_t offloaded = peak();
    const int64_t on_host = layout.host->memory().peak();
    EXPECT_GT(on_host, kept / 10);
    EXPECT_LT(offloaded, kept - on_host * 9 / 10);
  }
}

}  // namespace
}  // namespace torchtitan::train::testing
