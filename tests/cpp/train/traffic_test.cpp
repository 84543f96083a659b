// Calls and bytes of every collective of a step, measured, equal the closed formula.
#include <gtest/gtest.h>

#include <ATen/ops/empty.h>

#include "collectives/fake_group.h"
#include "collectives/recording.h"
#include "models/llama/model.h"
#include "plan/traffic.h"
#include "train/tiny_llama.h"
#include "train/traffic_formula.h"
#include "train/traffic_table.h"

namespace torchtitan::train::testing {
namespace {

using parallel::context::Method;
using plan::Reshard;

// What each rank has counted in steps of a run.
std::vector<TrafficMap> measure(Problem problem, const Layout& layout,
                                int64_t num_steps, Result* result) {
  problem.num_steps = num_steps;
  std::vector<std::shared_ptr<collectives::Recorder>> recorders;
  for (int64_t rank = 0; rank < layout.num_ranks(); ++rank) {
    recorders.push_back(std::make_shared<collectives::Recorder>());
  }
  *result = run_step(
      problem, layout, {.group = [&](const collectives::Group& group, int64_t rank) {
        return collectives::recorded(group, recorders[static_cast<size_t>(rank)]);
      }});
  std::vector<TrafficMap> all;
  for (const auto& recorder : recorders) {
    auto& measured = all.emplace_back();
    for (const auto& [channel, traffic] : recorder->totals()) {
      measured[channel] = {.calls = traffic.calls, .bytes = traffic.bytes};
    }
  }
  return all;
}

TrafficMap sum(TrafficMap one, const TrafficMap& other, int64_t sign = 1) {
  for (const auto& [channel, traffic] : other) {
    one[channel].calls += sign * traffic.calls;
    one[channel].bytes += sign * traffic.bytes;
  }
  return one;
}

void expect_equal(const TrafficMap& found, const TrafficMap& expected) {
  EXPECT_EQ(found.size(), expected.size());
  for (const auto& [channel, traffic] : expected) {
    const auto own = found.find(channel);
    ASSERT_NE(own, found.end()) << channel.first << " " << channel.second;
    EXPECT_EQ(own->second.calls, traffic.calls)
        << channel.first << " " << channel.second;
    EXPECT_EQ(own->second.bytes, traffic.bytes)
        << channel.first << " " << channel.second;
  }
}

// The shape of a rank with what its segments say they exchange for a microbatch, and
// the bytes of the messages between stages.
plan::StepShape with_exchanges(const Problem& problem, const Layout& layout,
                               plan::StepShape shape) {
  const auto model = models::llama::build(
      problem.args,
      {.head = models::llama::Head::kLoss,
       .device = at::kCPU,
       .dtype = at::kDouble,
       .axis = nn::TensorAxis(collectives::fake_group("tp", 0, layout.tensor),
                              layout.overlap),
       .loss_parallel = layout.loss_parallel,
       .attention = parallel::context::attention(
           collectives::fake_group("cp", 0, layout.context), layout.method,
           layout.balance)});
  const int64_t tokens = problem.seq_len / layout.context;
  const int64_t rows =
      problem.rows / (layout.num_data_ranks() * layout.num_microbatches);
  const std::map<std::string, at::Tensor> values = {
      {"input", at::empty({rows, tokens}, at::kLong)},
      {"labels", at::empty({rows, tokens}, at::kLong)},
      {"h", at::empty({rows, tokens / layout.tensor, problem.args.dim}, at::kDouble)}};
  const int64_t hidden_bytes = static_cast<int64_t>(values.at("h").nbytes());
  for (const auto& each : model.segments) {
    const auto& segment = *each;
    nn::TensorList inputs, parameters;
    for (const auto& name : segment.inputs()) inputs.push_back(values.at(name));
    for (const auto& [group, slot] : segment.parameters()) {
      const auto& spec = model.groups[static_cast<size_t>(group)]
                             .parameters[static_cast<size_t>(slot)];
      parameters.push_back(at::empty(spec.shape, at::kDouble));
      parameters.back().mutable_grad() = at::empty(spec.shape, at::kDouble);
    }
    auto exchanges = segment.exchanges(inputs, parameters);
    for (auto& own : shape.segments) {
      if (own.name != segment.name()) continue;
      own.output_bytes = hidden_bytes;
      own.forward_exchanges = std::move(exchanges.forward);
      own.recompute_exchanges = std::move(exchanges.recompute);
      own.backward_exchanges = std::move(exchanges.backward);
      own.backward_input_exchanges = std::move(exchanges.backward_input);
      own.backward_weight_exchanges = std::move(exchanges.backward_weight);
    }
  }
  for (auto& stage : shape.stages) {
    stage.received_bytes = stage.receives ? hidden_bytes : 0;
  }
  return shape;
}

class TrafficTest : public ::testing::TestWithParam<std::pair<std::string, Layout>> {};

TEST_P(TrafficTest, IsThatOfTheFormulaAndOfThePrediction) {
  const Layout& asked = GetParam().second;
  const bool is_divided = asked.tensor * asked.context > 1;
  Problem problem = is_divided ? tensor_problem() : Problem{};
  if (is_divided) problem.args.vocab_size = 256;
  const bool is_pipeline = asked.pipeline > 1;
  problem.rows = is_pipeline ? 16 : 36;
  if (is_pipeline) problem.args.n_layers = 6;  // for eight stages
  const std::vector<int64_t> counts =
      is_pipeline ? std::vector<int64_t>{2, 4} : std::vector<int64_t>{1, 3};
  for (const int64_t microbatches : counts) {
    Layout layout = asked;
    layout.num_microbatches = microbatches;
    Result result;
    const auto first = measure(problem, layout, 1, &result);
    // Of two steps: that of the second one is the difference.
    const bool is_last = microbatches == counts.back();
    const auto both = is_last ? measure(problem, layout, 2, &result) : first;
    for (size_t rank = 0; rank < first.size(); ++rank) {
      SCOPED_TRACE("rank " + std::to_string(rank));
      const auto number = static_cast<int64_t>(rank);
      const auto expected = traffic_formula(problem, layout, number);
      expect_equal(first[rank], sum(expected, headers_of_first_step(layout, number)));
      const auto& [shape, program] = result.plans[rank];
      expect_equal(plan::traffic(program, with_exchanges(problem, layout, shape),
                                 layout.num_loss_ranks()),
                   expected);
      if (!is_last) continue;
      const auto second = sum(both[rank], first[rank], -1);
      expect_equal(second, expected);
      record_traffic(layout, number, second, expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Traffic, TrafficTest,
    ::testing::Values(
        std::pair{std::string("Ddp2"), Layout{.replicas = 2}},
        std::pair{std::string("Fsdp3Always"),
                  Layout{.shards = 3, .reshard = Reshard::kAlways}},
        std::pair{std::string("Fsdp3AlwaysWithoutOverlap"),
                  Layout{.shards = 3, .reshard = Reshard::kAlways, .overlap_depth = 0}},
        std::pair{std::string("Fsdp3Default"), Layout{.shards = 3}},
        std::pair{std::string("Fsdp3Never"),
                  Layout{.shards = 3, .reshard = Reshard::kNever}},
        std::pair{std::string("Hsdp2x2"), Layout{.shards = 2, .replicas = 2}},
        std::pair{std::string("Tp2"), Layout{.tensor = 2}},
        std::pair{std::string("Tp4Recomputed"), Layout{.tensor = 4, .recompute = true}},
        std::pair{std::string("Tp2Ring"),
                  Layout{.tensor = 2, .overlap = nn::Overlap::kRing}},
        std::pair{
            std::string("Tp4RecomputedRing"),
            Layout{.tensor = 4, .overlap = nn::Overlap::kRing, .recompute = true}},
        std::pair{std::string("Fsdp3Tp2"), Layout{.shards = 3, .tensor = 2}},
        std::pair{std::string("Hsdp2x2Tp2"),
                  Layout{.shards = 2, .replicas = 2, .tensor = 2}},
        std::pair{std::string("Cp2Gather"),
                  Layout{.context = 2, .method = Method::kAllGather}},
        std::pair{std::string("Cp4RecomputedRing"),
                  Layout{.context = 4, .method = Method::kRing, .recompute = true}},
        std::pair{std::string("Cp4Ulysses"),
                  Layout{.context = 4, .method = Method::kUlysses}},
        std::pair{std::string("Fsdp3Cp2RecomputedGather"),
                  Layout{.shards = 3,
                         .context = 2,
                         .method = Method::kAllGather,
                         .recompute = true}},
        std::pair{
            std::string("Ddp2Cp2Tp2Ring"),
            Layout{.replicas = 2, .context = 2, .method = Method::kRing, .tensor = 2}},
        std::pair{
            std::string("Fsdp2Cp2Tp2Ulysses"),
            Layout{.shards = 2, .context = 2, .method = Method::kUlysses, .tensor = 2}},
        std::pair{std::string("Tp2WholeLogits"),
                  Layout{.tensor = 2, .loss_parallel = false}},
        std::pair{std::string("Fsdp2Tp4WholeLogitsRing"),
                  Layout{.shards = 2,
                         .tensor = 4,
                         .loss_parallel = false,
                         .overlap = nn::Overlap::kRing}},
        std::pair{std::string("Pp2"), Layout{.pipeline = 2}},
        std::pair{std::string("Pp2Tp2"), Layout{.tensor = 2, .pipeline = 2}},
        std::pair{std::string("Pp2Fsdp2"), Layout{.shards = 2, .pipeline = 2}},
        std::pair{std::string("Pp2Fsdp2AlwaysWithoutOverlap"),
                  Layout{.shards = 2,
                         .reshard = Reshard::kAlways,
                         .pipeline = 2,
                         .overlap_depth = 0}},
        std::pair{std::string("Pp2Cp2Ring"),
                  Layout{.context = 2, .method = Method::kRing, .pipeline = 2}},
        std::pair{std::string("Pp2Cp2Gather"),
                  Layout{.context = 2, .method = Method::kAllGather, .pipeline = 2}},
        std::pair{std::string("Pp2Hsdp2x2"),
                  Layout{.shards = 2, .replicas = 2, .pipeline = 2}},
        std::pair{std::string("Pp2Ddp2Tp2WholeLogits"), Layout{.replicas = 2,
                                                               .tensor = 2,
                                                               .loss_parallel = false,
                                                               .pipeline = 2,
                                                               .schedule = "GPipe"}},
        std::pair{std::string("Pp2Interleaved1F1BFsdp2Tp2Recomputed"),
                  Layout{.shards = 2,
                         .tensor = 2,
                         .pipeline = 2,
                         .schedule = "Interleaved1F1B",
                         .stages_per_rank = 2,
                         .recompute = true}},
        std::pair{std::string("Pp2ZeroBubbleVCp2UlyssesTp2"),
                  Layout{.context = 2,
                         .method = Method::kUlysses,
                         .tensor = 2,
                         .pipeline = 2,
                         .schedule = "ZBVZeroBubble",
                         .stages_per_rank = 2}},
        std::pair{std::string("Pp4Tp2RingOverlap"),
                  Layout{.tensor = 2,
                         .overlap = nn::Overlap::kRing,
                         .pipeline = 4,
                         .schedule = "DualPipeV",
                         .stages_per_rank = 2}}),
    [](const auto& info) { return info.param.first; });

}  // namespace
}  // namespace torchtitan::train::testing
