// Calls and bytes of every collective of a step, measured, equal the closed formula.
#include <gtest/gtest.h>

#include "base/checked_math.h"
#include "collectives/recording.h"
#include "plan/traffic.h"
#include "train/tiny_llama.h"

namespace torchtitan::train::testing {
namespace {

using plan::Channel;
using plan::Reshard;
using plan::Traffic;
using TrafficMap = std::map<Channel, Traffic>;

constexpr int64_t kBytes = 8;  // float64

// Elements that a rank keeps of each group: its rows, rounded up, of each parameter.
std::map<std::string, int64_t> local_numels(const Problem& problem, int64_t shards) {
  const auto& args = problem.args;
  const int64_t head_dim = args.dim / args.n_heads;
  const auto rows = [&](int64_t count) { return base::ceil_div(count, shards); };
  std::map<std::string, int64_t> numels;
  numels["tok_embeddings"] = rows(args.vocab_size) * args.dim;
  numels["block"] = 2 * rows(args.dim)                                 // two norms
                    + 2 * rows(args.dim) * args.dim                    // wq, wo
                    + 2 * rows(args.n_kv_heads * head_dim) * args.dim  // wk, wv
                    + 2 * rows(args.hidden_dim) * args.dim             // w1, w3
                    + rows(args.dim) * args.hidden_dim;                // w2
  numels["head"] = rows(args.dim) + rows(args.vocab_size) * args.dim;
  return numels;
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
  TrafficMap sum;
  const auto add = [&](const char* axis, const char* verb, int64_t calls,
                       int64_t numel) {
    auto& traffic = sum[{axis, verb}];
    traffic.calls += calls;
    traffic.bytes += calls * numel * kBytes;
  };
  for (const auto& [group, numel] : local_numels(problem, layout.shards)) {
    const int64_t count = group == "block" ? problem.args.n_layers : 1;
    if (layout.shards > 1) {
      add("fsdp", "all_gather", count * num_gathers(group, layout),
          layout.shards * numel);
      add("fsdp", "reduce_scatter", count * microbatches, layout.shards * numel);
    }
    if (layout.replicas > 1) add("dp_replicate", "all_reduce", count, numel);
  }
  add("loss", "all_reduce", 2, 1);                         // valid tokens, loss
  if (layout.shards > 1) add("fsdp", "all_reduce", 1, 1);  // squared norm
  return sum;
}

class TrafficTest : public ::testing::TestWithParam<std::pair<std::string, Layout>> {};

TEST_P(TrafficTest, IsThatOfTheFormulaAndOfThePrediction) {
  const Problem problem{.rows = 36};
  for (const int64_t microbatches : {1, 3}) {
    Layout layout = GetParam().second;
    layout.num_microbatches = microbatches;
    std::vector<std::shared_ptr<collectives::Recorder>> recorders;
    for (int64_t rank = 0; rank < layout.num_ranks(); ++rank) {
      recorders.push_back(std::make_shared<collectives::Recorder>());
    }
    layout.wrap = [&](const collectives::Group& group, int64_t rank) {
      return collectives::recorded(group, recorders[static_cast<size_t>(rank)]);
    };
    const auto result = run_step(problem, layout);
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
    EXPECT_EQ(plan::traffic(result.program, result.shape, layout.num_ranks()),
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
        std::pair{std::string("Hsdp2x2"), Layout{.shards = 2, .replicas = 2}}),
    [](const auto& info) { return info.param.first; });

}  // namespace
}  // namespace torchtitan::train::testing
