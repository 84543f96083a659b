// Deleting any single collective of a step is noticed by the equality check.
#include <ATen/Functions.h>
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
using parallel::context::Method;

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
  const Problem problem = layout.context > 1  ? context_problem()
                          : layout.tensor > 1 ? tensor_problem()
                                              : Problem{};
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
           {{"fsdp all_gather", 6}}}};
}

// A kernel with a mistake about where tokens are.
class Misplacing final : public nn::AttentionKernel {
 public:
  using Mistake = std::function<void(nn::TokenPlaces&)>;
  enum class Reader { kRotation, kAttention };  // who is misled
  Misplacing(std::shared_ptr<nn::AttentionKernel> inner, Reader reader, Mistake mistake)
      : inner_(std::move(inner)), reader_(reader), mistake_(std::move(mistake)) {}

  int64_t ranks() const override { return inner_->ranks(); }
  nn::TokenPlaces places(int64_t tokens, const at::Tensor& starts,
                         at::Device device) const override {
    return told(Reader::kRotation, inner_->places(tokens, starts, device));
  }
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const nn::TokenPlaces& here) const override {
    return inner_->attend(q, k, v, of_attention(here));
  }
  Operands enter(Operands x) const override { return inner_->enter(x); }
  Result forward(const Operands& x, const nn::TokenPlaces& here) const override {
    return inner_->forward(x, of_attention(here));
  }
  Operands backward(const Operands& x, const nn::TokenPlaces& here,
                    const Result& result, const at::Tensor& d_o) const override {
    return inner_->backward(x, of_attention(here), result, d_o);
  }
  std::vector<plan::Exchange> forward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    return inner_->forward_exchanges(sizes);
  }
  std::vector<plan::Exchange> backward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    return inner_->backward_exchanges(sizes);
  }

 private:
  nn::TokenPlaces told(Reader reader, nn::TokenPlaces places) const {
    if (reader == reader_) mistake_(places);
    return places;
  }
  nn::TokenPlaces of_attention(const nn::TokenPlaces& here) const {
    return told(
        Reader::kAttention,
        inner_->places(here.own.size(0), here.document_starts, here.own.device()));
  }

  std::shared_ptr<nn::AttentionKernel> inner_;
  Reader reader_;
  Mistake mistake_;
};

class MisplacedTest : public ::testing::TestWithParam<Method> {
 protected:
  // What is noticed when every rank makes the mistake; empty if nothing.
  std::string noticed(Misplacing::Reader reader,
                      const Misplacing::Mistake& mistake) const {
    const auto problem = with_documents(context_problem());
    const Layout layout = {.context = 2, .method = GetParam()};
    const auto result = run_step(
        problem, layout, {}, [&](const std::shared_ptr<nn::AttentionKernel>& kernel) {
          return std::make_shared<Misplacing>(kernel, reader, mistake);
        });
    return difference(result, run_reference(problem));
  }
};

TEST_P(MisplacedTest, EveryMistakeAboutPositionsAndDocumentsIsNoticed) {
  using Reader = Misplacing::Reader;
  const auto nothing = [](nn::TokenPlaces&) {};
  EXPECT_EQ(noticed(Reader::kAttention, nothing), "");
  EXPECT_EQ(noticed(Reader::kRotation, nothing), "");
  // As if nobody shared the sequence.
  EXPECT_NE(noticed(Reader::kRotation,
                    [](auto& places) {
                      places.own = at::arange(places.own.size(0), at::kLong);
                    }),
            "");
  EXPECT_NE(
      noticed(Reader::kAttention,
              [](auto& places) { places.positions = places.positions.flip({0}); }),
      "");
  EXPECT_NE(noticed(Reader::kAttention,
                    [](auto& places) {
                      places.own = places.own.roll(1);
                      places.positions = places.positions.roll(1, 1);
                    }),
            "");
  EXPECT_NE(noticed(Reader::kAttention,
                    [](auto& places) { places.document_starts = at::Tensor(); }),
            "");
  EXPECT_NE(noticed(Reader::kAttention,
                    [](auto& places) {
                      places.document_starts = places.document_starts.add(1).minimum(
                          at::arange(places.document_starts.size(1)));
                    }),
            "");
}

INSTANTIATE_TEST_SUITE_P(Mutation, MisplacedTest,
                         ::testing::Values(Method::kAllGather, Method::kRing,
                                           Method::kUlysses));

INSTANTIATE_TEST_SUITE_P(Mutation, MutationTest, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace torchtitan::train::testing
