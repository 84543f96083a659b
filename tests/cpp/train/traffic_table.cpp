#include "train/traffic_table.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <tuple>

namespace torchtitan::train::testing {
namespace {

// Ranks, words, microbatches, stages of, axis.
using Key = std::tuple<int64_t, std::string, int64_t, std::string, std::string>;
struct Row {
  plan::Traffic measured;
  plan::Traffic expected;
};

std::map<Key, Row>& rows() {
  static auto* const all = new std::map<Key, Row>;
  return *all;
}

std::map<std::string, plan::Traffic> by_axis(const TrafficMap& traffic) {
  std::map<std::string, plan::Traffic> sums;
  for (const auto& [channel, each] : traffic) {
    sums[channel.first].calls += each.calls;
    sums[channel.first].bytes += each.bytes;
  }
  return sums;
}

class TrafficTableWriter final : public ::testing::Environment {
 public:
  void TearDown() override {
    const char* const path = std::getenv("TORCHTITAN_TRAFFIC_TABLE");
    if (path == nullptr) return;
    std::ofstream out(path);
    int64_t equal = 0;
    std::set<std::string> layouts;
    for (const auto& [key, row] : rows()) {
      equal += row.measured == row.expected ? 1 : 0;
      layouts.insert(std::get<1>(key));
    }
    out << "# Bytes of a step by mesh axis\n\n"
           "Written by\n\n"
           "    TORCHTITAN_TRAFFIC_TABLE=tests/traffic.md "
           "build/dev/tests/cpp/train_test --gtest_filter='*Traffic*'\n\n"
           "The second step of a tiny Llama in float64, each rank a thread: what groups "
           "have counted, and what tests/cpp/train/traffic_formula.cpp says from sizes "
           "and degrees. Bytes are those of the larger side of each call: the result of "
           "an all_gather, the input of a reduce_scatter, else the tensor. The tests "
           "compare each rank, verb by verb; here verbs of an axis are added up. The "
           "first step of a pipeline also sends 80 bytes of shapes over every border "
           "between ranks.\n\n"
        << layouts.size() << " layouts, " << rows().size()
        << " rows; measured is what the formula says in " << equal << " of them.\n\n"
        << "| ranks | layout | microbatches | stages of | axis | calls | by formula | "
           "bytes | by formula |\n"
        << "| --: | :-- | --: | :-- | :-- | --: | --: | --: | --: |\n";
    for (const auto& [key, row] : rows()) {
      const auto& [ranks, words, microbatches, stages, axis] = key;
      out << "| " << ranks << " | " << words << " | " << microbatches << " | " << stages
          << " | " << axis << " | " << row.measured.calls << " | " << row.expected.calls
          << " | " << row.measured.bytes << " | " << row.expected.bytes << " |\n";
    }
    EXPECT_TRUE(out.good()) << "cannot write " << path;
  }
};

const auto* const kWriter = ::testing::AddGlobalTestEnvironment(new TrafficTableWriter);

}  // namespace

void record_traffic(const Layout& layout, int64_t rank, const TrafficMap& measured,
                    const TrafficMap& expected) {
  const std::string stages =
      layout.pipeline == 1
          ? "all"
          : "pipeline rank " + std::to_string(pipeline_rank(layout, rank));
  const auto found = by_axis(measured);
  for (const auto& [axis, traffic] : by_axis(expected)) {
    const auto own = found.find(axis);
    rows()[{layout.num_ranks(), words_of(layout), layout.num_microbatches, stages,
            axis}] = {.measured = own == found.end() ? plan::Traffic() : own->second,
                      .expected = traffic};
  }
}

}  // namespace torchtitan::train::testing
