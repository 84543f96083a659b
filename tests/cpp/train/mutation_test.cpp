// Deleting any single collective or message of a step, or taking the average of one in
// place of the sum, is noticed by the equality check.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>

#include "collectives/backend.h"
#include "train/differences.h"
#include "train/equality_table.h"

namespace torchtitan::train::testing {
namespace {

using collectives::Backend;
using collectives::Group;
using collectives::Operation;
using collectives::Verb;
using parallel::context::Method;

// "axis verb", and which call of it by a rank, from 0. A message of a pipeline is that
// of one rank: "pp send of rank 3".
using Call = std::pair<std::string, int64_t>;

// And whether it is a sum.
using Calls = std::map<Call, bool>;

// What is wrong with a call, on every rank that makes it.
enum class Mistake { kLeftOut, kAveraged };

// Divides what a sum gave by the number of ranks.
class Averaged final : public collectives::Work {
 public:
  Averaged(std::shared_ptr<Work> sum, at::Tensor out, int64_t ranks)
      : sum_(std::move(sum)), out_(std::move(out)), ranks_(ranks) {}
  bool completed() override { return !sum_ || sum_->completed(); }
  void wait() override {
    if (sum_) sum_->wait();
    if (!out_.defined()) return;
    if (out_.is_floating_point()) {
      out_.div_(ranks_);
    } else {
      out_.div_(ranks_, "floor");
    }
    out_.reset();
  }

 private:
  std::shared_ptr<Work> sum_;
  at::Tensor out_;
  int64_t ranks_;
};

// A left out sum stays the rank's own part, a gather holds nothing but the rank's own
// piece, zeros are sent.
class Spoiling final : public Backend {
 public:
  Spoiling(const Group& group, int64_t world_rank, Call spoiled, Mistake mistake,
           Calls* seen, std::mutex* mutex)
      : axis_(group.name()), world_rank_(world_rank), inner_(group.backend()),
        spoiled_(std::move(spoiled)), mistake_(mistake), seen_(seen), mutex_(mutex) {}

  int64_t rank() const override { return inner_->rank(); }
  int64_t size() const override { return inner_->size(); }

  std::shared_ptr<collectives::Work> start(Operation operation) override {
    auto name = axis_ + " " + std::string(verb_name(operation.verb));
    if (axis_ == "pp" && operation.verb == Verb::kSend) {
      name += " of rank " + std::to_string(world_rank_);
    }
    // A receive that is left out is the send of another rank.
    if (operation.verb == Verb::kRecv) return inner_->start(std::move(operation));
    const Call call{name, count_[name]++};
    {
      const std::lock_guard lock(*mutex_);
      seen_->emplace(call, is_sum(operation));
    }
    if (call != spoiled_) return inner_->start(std::move(operation));
    if (mistake_ == Mistake::kAveraged) {
      auto out = operation.out;
      return std::make_shared<Averaged>(inner_->start(std::move(operation)),
                                        std::move(out), size());
    }
    if (operation.verb == Verb::kSend) {
      operation.in = at::zeros_like(operation.in);
      return inner_->start(std::move(operation));
    }
    leave_out(operation);
    return nullptr;
  }

 private:
  static bool is_sum(const Operation& operation) {
    return operation.op == collectives::ReduceOp::kSum &&
           (operation.verb == Verb::kAllReduce ||
            operation.verb == Verb::kReduceScatter);
  }

  void leave_out(const Operation& operation) const {
    const int64_t numel = std::min(operation.out.numel(),
                                   operation.in.defined() ? operation.in.numel() : 0);
    const auto out = operation.out.flatten();
    if (operation.verb == Verb::kAllGather) {
      const auto own = operation.in.flatten().clone();
      out.zero_();
      out.narrow(0, rank() * numel, numel).copy_(own);
    }
    if (operation.verb == Verb::kAllToAll) {
      const int64_t rows = operation.in.size(0) / size();
      operation.out.zero_();
      operation.out.narrow(0, rank() * rows, rows)
          .copy_(operation.in.narrow(0, rank() * rows, rows));
    }
    if (operation.verb == Verb::kReduceScatter) {
      out.copy_(operation.in.flatten().narrow(0, rank() * numel, numel));
    }
  }

  std::string axis_;
  int64_t world_rank_;
  std::shared_ptr<Backend> inner_;
  Call spoiled_;
  Mistake mistake_;
  std::map<std::string, int64_t> count_;
  Calls* seen_;
  std::mutex* mutex_;
};

// Runs the layout with the mistake in one call; `seen` gets all calls of the run.
Result run_spoiled(const Problem& problem, const Layout& layout, const Call& spoiled,
                   Mistake mistake, Calls& seen) {
  std::mutex mutex;
  return run_step(problem, layout, {.group = [&](const Group& group, int64_t rank) {
                    return Group(group.name(),
                                 std::make_shared<Spoiling>(group, rank, spoiled,
                                                            mistake, &seen, &mutex));
                  }});
}

// What a pipeline announces of its messages may be refused as soon as it is wrong.
bool is_noticed(const Problem& problem, const Layout& layout, const Call& spoiled,
                Mistake mistake, const Result& reference) {
  Calls seen;
  try {
    return !difference(run_spoiled(problem, layout, spoiled, mistake, seen), reference)
                .empty();
  } catch (const c10::Error&) {
    return true;
  }
}

// "pp send of rank 3" is a pp send in the table.
std::string words(std::string call, Mistake mistake) {
  call = call.substr(0, call.find(" of "));
  if (mistake == Mistake::kAveraged) return call + " averaged";
  return call + (call.ends_with("send") ? " of zeros" : " left out");
}

// With tied embeddings, which the first and last stage share, and a layer for every
// stage but one.
Problem pipeline_problem(const Layout& layout) {
  auto problem = tensor_problem();
  problem.args.n_layers =
      std::max<int64_t>(2, layout.pipeline * layout.stages_per_rank - 1);
  problem.args.vocab_size = 61;
  problem.args.tied_embeddings = true;
  problem.rows = layout.num_data_ranks() * layout.num_microbatches;
  return problem;
}

Problem problem_of(const Layout& layout) {
  if (layout.pipeline > 1) return pipeline_problem(layout);
  if (layout.context > 1) return context_problem();
  return layout.tensor > 1 ? tensor_problem() : Problem{};
}

// A layout and the calls whose loss changes no number here.
struct Case {
  std::string name;
  Layout layout;
  std::set<Call> without_effect = {};
};

class MutationTest : public ::testing::TestWithParam<Case> {};

TEST_P(MutationTest, EveryMistakeInACollectiveIsNoticed) {
  const auto& [name, layout, without_effect] = GetParam();
  const Problem problem = problem_of(layout);
  const auto reference = run_reference(problem);
  Calls calls;
  const auto unspoiled = run_spoiled(problem, layout, {}, Mistake::kLeftOut, calls);
  ASSERT_EQ(difference(unspoiled, reference), "");
  ASSERT_GT(calls.size(), 5u);
  const auto expect_noticed = [&](const Call& call, Mistake mistake) {
    const bool noticed = is_noticed(problem, layout, call, mistake, reference);
    const bool is_harmless = without_effect.contains(call);
    EXPECT_EQ(noticed, !is_harmless)
        << call.first << ", call " << call.second
        << (mistake == Mistake::kAveraged ? ", averaged" : ", left out");
    record_mutant(
        {.mistake = words(call.first, mistake),
         .layout = name,
         .noticed = noticed,
         .harmless_call = is_harmless ? std::optional(call.second) : std::nullopt});
  };
  for (const auto& [call, is_sum] : calls) {
    expect_noticed(call, Mistake::kLeftOut);
    if (is_sum) expect_noticed(call, Mistake::kAveraged);
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
           {{"fsdp all_gather", 6}}},
      Case{"Cp2Gather",
           {.context = 2, .method = Method::kAllGather, .recompute = true},
           {{"fsdp all_gather", 6}}},
      Case{
          "Cp4Ring", {.context = 4, .method = Method::kRing}, {{"fsdp all_gather", 6}}},
      Case{"Cp2Tp2Ring",
           {.context = 2, .method = Method::kRing, .tensor = 2},
           {{"fsdp all_gather", 6}}},
      Case{"Ddp2Cp2Ulysses",
           {.replicas = 2, .context = 2, .method = Method::kUlysses},
           {{"fsdp all_gather", 6}}},
      Case{"Pp2Tp2OneFOneB",
           {.tensor = 2, .pipeline = 2, .schedule = "1F1B", .num_microbatches = 2}},
      Case{"Pp2Tp2Zbv",
           {.tensor = 2,
            .pipeline = 2,
            .schedule = "ZBVZeroBubble",
            .stages_per_rank = 2,
            .num_microbatches = 2}},
      Case{"Pp2Fsdp2DualPipeV",
           {.shards = 2,
            .pipeline = 2,
            .schedule = "DualPipeV",
            .stages_per_rank = 2,
            .num_microbatches = 2}},
      Case{"Pp4Interleaved",
           {.pipeline = 4,
            .schedule = "Interleaved1F1B",
            .stages_per_rank = 2,
            .num_microbatches = 2,
            .recompute = true}}};
}

INSTANTIATE_TEST_SUITE_P(Mutation, MutationTest, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace torchtitan::train::testing
