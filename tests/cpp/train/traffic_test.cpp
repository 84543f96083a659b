// Calls and bytes of every collective of a step, measured, equal the closed formula.
#include <gtest/gtest.h>

#include <ATen/ops/empty.h>

#include "base/checked_math.h"
#include "collectives/fake_group.h"
#include "collectives/recording.h"
#include "models/llama/model.h"
#include "plan/traffic.h"
#include "train/tiny_llama.h"

namespace torchtitan::train::testing {
namespace {

using parallel::context::Method;
using plan::Channel;
using plan::Reshard;
using plan::Traffic;
using TrafficMap = std::map<Channel, Traffic>;

constexpr int64_t kBytes = 8;  // float64

// Elements that a rank keeps of each group: its rows, rounded up, of each parameter.
std::map<std::string, int64_t> local_numels(const Problem& problem,
                                            const Layout& layout) {
  const auto& args = problem.args;
  const int64_t key_dim = args.n_kv_heads * (args.dim / args.n_heads);
  const auto rows = [&](int64_t count) {
    return base::ceil_div(count, layout.shards * layout.context);
  };
  const auto part = [&](int64_t count) { return count / layout.tensor; };
  std::map<std::string, int64_t> numels;
  numels["tok_embeddings"] = rows(part(args.vocab_size)) * args.dim;
  numels["block"] = 2 * rows(args.dim)                            // two norms
                    + rows(part(args.dim)) * args.dim             // wq
                    + rows(args.dim) * part(args.dim)             // wo
                    + 2 * rows(part(key_dim)) * args.dim          // wk, wv
                    + 2 * rows(part(args.hidden_dim)) * args.dim  // w1, w3
                    + rows(args.dim) * part(args.hidden_dim);     // w2
  numels["head"] = rows(args.dim) + rows(part(args.vocab_size)) * args.dim;
  return numels;
}

// Bytes within segments over the axis "tp", for one microbatch of `tokens` tokens.
struct Exchanged {
  const char* verb;
  int64_t calls;
  int64_t numel;
};
std::vector<Exchanged> tensor_exchanges(const Problem& problem, const Layout& layout,
                                        int64_t tokens) {
  const int64_t blocks = problem.args.n_layers, dim = problem.args.dim;
  const int64_t forwards = layout.recompute ? 2 : 1;
  const int64_t hidden = tokens * dim;
  // Gathers into each half of a block and of its gradient, into the head; sums out of
  // each half and of its gradient, out of the head's.
  const int64_t gathers = 2 * forwards * blocks + 2 * blocks + 1;
  // A block that runs again needs no output.
  const int64_t sums = gathers - (forwards - 1) * blocks;
  std::vector<Exchanged> all = {{"all_gather", 2 * blocks, hidden},  // its input again
                                {"all_reduce", blocks, 2 * dim},     // two norms
                                {"reduce_scatter", 1, hidden},       // embedding
                                {"all_gather", 1, hidden},
                                {"all_gather", 1, 3 * tokens * layout.tensor},  // head
                                {"all_reduce", 1, dim}};
  if (layout.overlap == nn::Overlap::kNone) {
    all.push_back({"all_gather", gathers, hidden});
    all.push_back({"reduce_scatter", sums, hidden});
  } else {
    const int64_t hops = (gathers + sums) * (layout.tensor - 1);
    all.push_back({"send", hops, hidden / layout.tensor});
    all.push_back({"recv", hops, hidden / layout.tensor});
  }
  return all;
}

// The same over the axis "cp", for `tokens` tokens of a rank's.
std::vector<Exchanged> context_exchanges(const Problem& problem, const Layout& layout,
                                         int64_t tokens) {
  const auto& args = problem.args;
  const int64_t blocks = args.n_layers, ranks = layout.context;
  const int64_t forwards = layout.recompute ? 2 * blocks : blocks;
  const int64_t query = args.dim / layout.tensor;
  const int64_t key = args.n_kv_heads * (args.dim / args.n_heads) / layout.tensor;
  const int64_t keys = 2 * tokens * key;  // and values
  switch (layout.method) {
    case Method::kAllGather:
      return {{"all_gather", forwards + blocks, ranks * keys},
              {"reduce_scatter", blocks, ranks * keys}};
    case Method::kRing: {
      // Keys in both directions of time, their gradients in one.
      const int64_t hops = (ranks - 1) * (forwards + 2 * blocks);
      return {{"send", hops, keys}, {"recv", hops, keys}};
    }
    case Method::kUlysses:
      return {{"all_to_all", forwards, tokens * query + keys},  // there
              {"all_to_all", forwards, tokens * query},         // outputs back
              {"all_to_all", blocks, 2 * tokens * query},       // with their gradients
              {"all_to_all", blocks, tokens * query + keys}};
  }
  return {};
}

// Gathers of a group in a step of `microbatches`. A gather is saved where the very next
// computation uses the group again: the head's backward follows its forward, and the
// embedding's next forward follows its backward. With kAlways that needs a look ahead,
// with kNever the gathered group is kept in between, too.
int64_t num_gathers(const std::string& group, const Layout& layout) {
  const int64_t microbatches = layout.num_microbatches;
  if (layout.reshard == Reshard::kAlways && layout.overlap_depth == 0) {
    return 2 * microbatches;
  }
  const bool never = layout.reshard == Reshard::kNever;
  if (group == "tok_embeddings") return never ? 1 : microbatches + 1;
  if (group == "head" || never) return microbatches;
  return 2 * microbatches;
}

TrafficMap formula(const Problem& problem, const Layout& layout) {
  const int64_t microbatches = layout.num_microbatches;
  const int64_t shards = layout.shards * layout.context;
  TrafficMap sum;
  const auto add = [&](const char* axis, const char* verb, int64_t calls,
                       int64_t numel) {
    auto& traffic = sum[{axis, verb}];
    traffic.calls += calls;
    traffic.bytes += calls * numel * kBytes;
  };
  for (const auto& [group, numel] : local_numels(problem, layout)) {
    const int64_t count = group == "block" ? problem.args.n_layers : 1;
    if (shards > 1) {
      add("fsdp", "all_gather", count * num_gathers(group, layout), shards * numel);
      add("fsdp", "reduce_scatter", count * microbatches, shards * numel);
    }
    if (layout.replicas > 1) add("dp_replicate", "all_reduce", count, numel);
  }
  if (layout.num_loss_ranks() > 1) {
    add("loss", "all_reduce", 2, 1);  // valid tokens, loss
  }
  if (shards > 1) add("fsdp", "all_reduce", 1, 1);  // squared norm
  const int64_t tokens =
      problem.rows * problem.seq_len / (layout.num_loss_ranks() * microbatches);
  if (layout.context > 1) {
    for (const auto& [verb, calls, numel] :
         context_exchanges(problem, layout, tokens)) {
      add("cp", verb, calls * microbatches, numel);
    }
  }
  if (layout.tensor > 1) {
    add("tp", "all_reduce", 1, 1);  // squared norm
    for (const auto& [verb, calls, numel] : tensor_exchanges(problem, layout, tokens)) {
      add("tp", verb, calls * microbatches, numel);
    }
  }
  return sum;
}

// The shape of the run with what its segments say they exchange for a microbatch.
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
  for (size_t i = 0; i < model.segments.size(); ++i) {
    const auto& segment = *model.segments[i];
    nn::TensorList inputs, parameters;
    for (const auto& name : segment.inputs()) inputs.push_back(values.at(name));
    for (const auto& [group, slot] : segment.parameters()) {
      const auto& spec = model.groups[static_cast<size_t>(group)]
                             .parameters[static_cast<size_t>(slot)];
      parameters.push_back(at::empty(spec.shape, at::kDouble));
      parameters.back().mutable_grad() = at::empty(spec.shape, at::kDouble);
    }
    auto exchanges = segment.exchanges(inputs, parameters);
    shape.segments[i].forward_exchanges = std::move(exchanges.forward);
    shape.segments[i].recompute_exchanges = std::move(exchanges.recompute);
    shape.segments[i].backward_exchanges = std::move(exchanges.backward);
  }
  return shape;
}

class TrafficTest : public ::testing::TestWithParam<std::pair<std::string, Layout>> {};

TEST_P(TrafficTest, IsThatOfTheFormulaAndOfThePrediction) {
  const bool is_divided = GetParam().second.tensor * GetParam().second.context > 1;
  Problem problem = is_divided ? tensor_problem() : Problem{};
  problem.rows = 36;
  if (is_divided) problem.args.vocab_size = 256;
  for (const int64_t microbatches : {1, 3}) {
    Layout layout = GetParam().second;
    layout.num_microbatches = microbatches;
    std::vector<std::shared_ptr<collectives::Recorder>> recorders;
    for (int64_t rank = 0; rank < layout.num_ranks(); ++rank) {
      recorders.push_back(std::make_shared<collectives::Recorder>());
    }
    const auto result = run_step(
        problem, layout, {.group = [&](const collectives::Group& group, int64_t rank) {
          return collectives::recorded(group, recorders[static_cast<size_t>(rank)]);
        }});
    const auto expected = formula(problem, layout);
    for (const auto& recorder : recorders) {
      TrafficMap measured;
      for (const auto& [channel, traffic] : recorder->totals()) {
        measured[channel] = {.calls = traffic.calls, .bytes = traffic.bytes};
      }
      ASSERT_EQ(measured.size(), expected.size());
      for (const auto& [channel, traffic] : expected) {
        EXPECT_EQ(measured[channel].calls, traffic.calls)
            << channel.first << " " << channel.second;
        EXPECT_EQ(measured[channel].bytes, traffic.bytes)
            << channel.first << " " << channel.second;
      }
    }
    EXPECT_EQ(
        plan::traffic(result.program, with_exchanges(problem, layout, result.shape),
                      layout.num_loss_ranks()),
        expected);
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
            Layout{
                .shards = 2, .context = 2, .method = Method::kUlysses, .tensor = 2}}),
    [](const auto& info) { return info.param.first; });

}  // namespace
}  // namespace torchtitan::train::testing
