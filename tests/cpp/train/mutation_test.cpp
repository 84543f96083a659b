// Deleting any single collective of a step is noticed by the equality check.
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>

#include "collectives/backend.h"
#include "train/tiny_llama.h"

namespace torchtitan::train::testing {
namespace {

using collectives::Backend;
using collectives::Group;
using collectives::Operation;
using collectives::Verb;

// "axis verb", and which call of it by a rank, from 0.
using Call = std::pair<std::string, int64_t>;

// Leaves one call out, on every rank: a sum stays the rank's own part, a gather holds
// nothing but the rank's own piece, zeros are sent.
class LeavingOut final : public Backend {
 public:
  LeavingOut(const Group& group, Call left_out, std::set<Call>* seen, std::mutex* mutex)
      : axis_(group.name()), inner_(group.backend()), left_out_(std::move(left_out)),
        seen_(seen), mutex_(mutex) {}

  int64_t rank() const override { return inner_->rank(); }
  int64_t size() const override { return inner_->size(); }

  std::shared_ptr<collectives::Work> start(Operation operation) override {
    const auto name = axis_ + " " + std::string(verb_name(operation.verb));
    // A receive that is left out is the send of another rank.
    if (operation.verb == Verb::kRecv) return inner_->start(std::move(operation));
    const Call call{name, count_[name]++};
    {
      const std::lock_guard lock(*mutex_);
      seen_->insert(call);
    }
    if (call != left_out_) return inner_->start(std::move(operation));
    if (operation.verb == Verb::kSend) {
      operation.in = at::zeros_like(operation.in);
      return inner_->start(std::move(operation));
    }
    leave_out(operation);
    return nullptr;
  }

 private:
  void leave_out(const Operation& operation) const {
    const int64_t numel = std::min(operation.out.numel(),
                                   operation.in.defined() ? operation.in.numel() : 0);
    const auto out = operation.out.flatten();
    if (operation.verb == Verb::kAllGather) {
      const auto own = operation.in.flatten().clone();
      out.zero_();
      out.narrow(0, rank() * numel, numel).copy_(own);
    }
    if (operation.verb == Verb::kReduceScatter) {
      out.copy_(operation.in.flatten().narrow(0, rank() * numel, numel));
    }
  }

  std::string axis_;
  std::shared_ptr<Backend> inner_;
  Call left_out_;
  std::map<std::string, int64_t> count_;
  std::set<Call>* seen_;
  std::mutex* mutex_;
};

// Runs the layout without `left_out`; `seen` gets all calls of the run.
Result run_without(const Problem& problem, const Layout& layout, const Call& left_out,
                   std::set<Call>& seen) {
  std::mutex mutex;
  return run_step(problem, layout, [&](const Group& group, int64_t) {
    return Group(group.name(),
                 std::make_shared<LeavingOut>(group, left_out, &seen, &mutex));
  });
}

// A layout and the calls whose loss changes no number here.
struct Case {
  std::string name;
  Layout layout;
  std::set<Call> without_effect = {};
};

class MutationTest : public ::testing::TestWithParam<Case> {};

TEST_P(MutationTest, EveryCollectiveThatIsLeftOutIsNoticed) {
  const auto& [name, layout, without_effect] = GetParam();
  const Problem problem = layout.tensor > 1 ? tensor_problem() : Problem{};
  const auto reference = run_reference(problem);
  std::set<Call> calls;
  ASSERT_EQ(difference(run_without(problem, layout, {"", 0}, calls), reference), "");
  ASSERT_GT(calls.size(), 5u);
  for (const auto& call : calls) {
    std::set<Call> seen;
    const auto result = run_without(problem, layout, call, seen);
    const bool noticed = !difference(result, reference).empty();
    EXPECT_EQ(noticed, !without_effect.contains(call))
        << call.first << ", call " << call.second;
  }
}

// The last gather is the embedding's for its backward, which does not read the weight.
// Norms of the groups that step early serve the check for NaN only.
std::vector<Case> cases() {
  return {
      Case{"Ddp2", {.replicas = 2, .num_microbatches = 2}},
      Case{"Fsdp3", {.shards = 3, .num_microbatches = 2}, {{"fsdp all_gather", 12}}},
      Case{"Fsdp2Early",
           {.shards = 2, .early_optimizer_step = true},
           {{"fsdp all_gather", 6},
            {"fsdp all_reduce", 0},
            {"fsdp all_reduce", 1},
            {"fsdp all_reduce", 2},
            {"fsdp all_reduce", 3}}},
      Case{"Hsdp2x2", {.shards = 2, .replicas = 2}, {{"fsdp all_gather", 6}}},
      Case{"Tp2", {.tensor = 2}},
      Case{"Tp2WholeLogits", {.tensor = 2, .loss_parallel = false}},
      Case{"Tp2Ring", {.tensor = 2, .overlap = nn::Overlap::kRing}},
      Case{"Fsdp2Tp2Recomputed",
           {.shards = 2, .tensor = 2, .recompute = true},
           {{"fsdp all_gather", 6}}}};
}

INSTANTIATE_TEST_SUITE_P(Mutation, MutationTest, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace torchtitan::train::testing
