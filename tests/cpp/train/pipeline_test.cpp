// A pipeline of any schedule gives the loss and all gradients of plain autograd over
// one process, together with every other way to divide the work.
#include <gtest/gtest.h>

#include "collectives/recording.h"
#include "plan/traffic.h"
#include "plan/verify.h"
#include "train/differences.h"

namespace torchtitan::train::testing {
namespace {

void expect_equal_training(const Problem& problem, const Layout& layout) {
  EXPECT_EQ(difference(run_step(problem, layout), run_reference(problem)), "");
}

// With layers for eight stages.
Problem pipeline_problem(int64_t rows) {
  auto problem = tensor_problem();
  problem.args.n_layers = 6;
  problem.rows = rows;
  return problem;
}

std::vector<std::pair<std::string, Layout>> schedules(
    const std::vector<int64_t>& degrees) {
  std::vector<std::pair<std::string, Layout>> all;
  for (const int64_t ranks : degrees) {
    for (const char* name : {"GPipe", "1F1B"}) {
      all.push_back({name, {.pipeline = ranks, .schedule = name}});
    }
    for (const char* name : {"Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble",
                             "ZBVZeroBubble", "DualPipeV"}) {
      all.push_back(
          {name, {.pipeline = ranks, .schedule = name, .stages_per_rank = 2}});
    }
  }
  for (auto& [name, layout] : all) {
    name = "Pp" + std::to_string(layout.pipeline) + (name == "1F1B" ? "OneF" : name);
  }
  return all;
}

class ScheduleSlow : public ::testing::TestWithParam<std::pair<std::string, Layout>> {};

TEST_P(ScheduleSlow, EqualsPlainAutogradOverThreeSteps) {
  auto layout = GetParam().second;
  layout.num_microbatches = 8;
  auto problem = pipeline_problem(16);
  problem.num_steps = 3;
  problem.last_masked = 3;
  expect_equal_training(problem, layout);
}

TEST_P(ScheduleSlow, EqualsPlainAutogradWithFewerMicrobatchesThanStages) {
  auto layout = GetParam().second;
  layout.num_microbatches = layout.pipeline;
  expect_equal_training(pipeline_problem(8), layout);
}

TEST_P(ScheduleSlow, EqualsPlainAutogradWithTiedEmbeddingsAndRecomputedBlocks) {
  auto layout = GetParam().second;
  layout.num_microbatches = 8;
  layout.rounds = 2;
  layout.recompute = true;
  auto problem = pipeline_problem(16);
  problem.num_steps = 2;
  problem.args.tied_embeddings = true;
  expect_equal_training(problem, layout);
}

// With further degrees, which make eight ranks of two stages.
class ComposedScheduleSlow : public ScheduleSlow {};

TEST_P(ComposedScheduleSlow, EqualsPlainAutogradWithShardsAndTensorRanks) {
  auto layout = GetParam().second;
  layout.num_microbatches = 4;
  layout.shards = layout.tensor = 2;
  auto problem = pipeline_problem(16);
  problem.num_steps = 2;
  problem.args.tied_embeddings = true;
  for (const auto reshard : {plan::Reshard::kDefault, plan::Reshard::kAlways}) {
    layout.reshard = reshard;
    expect_equal_training(problem, layout);
  }
}

TEST_P(ComposedScheduleSlow, EqualsPlainAutogradWithContextAndTensorRanks) {
  auto layout = GetParam().second;
  layout.num_microbatches = 2;
  layout.context = layout.tensor = 2;
  expect_equal_training(pipeline_problem(8), layout);
}

INSTANTIATE_TEST_SUITE_P(Pipeline, ScheduleSlow, ::testing::ValuesIn(schedules({2, 4})),
                         [](const auto& info) { return info.param.first; });
INSTANTIATE_TEST_SUITE_P(Pipeline, ComposedScheduleSlow,
                         ::testing::ValuesIn(schedules({2})),
                         [](const auto& info) { return info.param.first; });

// Every microbatch crosses every border between ranks once in each direction; the first
// one of a border brings a header of ten numbers.
TEST(Pipeline, MessagesAreThoseOfTheFormulaAndOfThePrediction) {
  for (const auto& [name, ranks, per_rank] :
       std::vector<std::tuple<std::string, int64_t, int64_t>>{
           {"1F1B", 2, 1}, {"Interleaved1F1B", 4, 2}, {"ZBVZeroBubble", 2, 2}}) {
    const Layout layout = {.tensor = 2,
                           .pipeline = ranks,
                           .schedule = name,
                           .stages_per_rank = per_rank,
                           .num_microbatches = 4};
    const auto problem = pipeline_problem(8);
    std::vector<std::shared_ptr<collectives::Recorder>> recorders;
    for (int64_t rank = 0; rank < layout.num_ranks(); ++rank) {
      recorders.push_back(std::make_shared<collectives::Recorder>());
    }
    const auto result = run_step(
        problem, layout, {.group = [&](const collectives::Group& group, int64_t rank) {
          return collectives::recorded(group, recorders[static_cast<size_t>(rank)]);
        }});
    const int64_t bytes = 2 * problem.seq_len * problem.args.dim * 8 / layout.tensor;
    auto shape = result.shape;
    for (auto& segment : shape.segments) segment.output_bytes = bytes;
    int64_t borders = 0, first_sends = 0, first_receives = 0;
    for (auto& stage : shape.stages) {
      stage.received_bytes = bytes;
      borders += (stage.receives ? 1 : 0) + (stage.sends ? 1 : 0);
      first_sends += stage.sends ? 1 : 0;
      first_receives += stage.receives ? 1 : 0;
    }
    auto measured = recorders[0]->totals();
    const int64_t calls = borders * layout.num_microbatches;
    EXPECT_EQ((measured[{"pp", "send"}].calls), calls + first_sends) << name;
    EXPECT_EQ((measured[{"pp", "recv"}].calls), calls + first_receives) << name;
    EXPECT_EQ((measured[{"pp", "send"}].bytes), calls * bytes + first_sends * 80);
    EXPECT_EQ((measured[{"pp", "recv"}].bytes), calls * bytes + first_receives * 80);
    EXPECT_EQ((measured[{"pp", "all_reduce"}].bytes), 16);
    auto predicted = plan::traffic(result.program, shape, 1);
    for (const char* verb : {"send", "recv"}) {
      EXPECT_EQ((predicted[{"pp", verb}].calls), calls);
      EXPECT_EQ((predicted[{"pp", verb}].bytes), calls * bytes);
    }
    EXPECT_EQ((predicted[{"pp", "all_reduce"}].bytes), 16);
    plan::verify(result.program, result.shape, plan::ProgramKind::kTraining);
  }
}

}  // namespace
}  // namespace torchtitan::train::testing
