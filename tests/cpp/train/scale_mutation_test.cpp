// Every factor of the loss and of gradients that is not part of a collective (those are
// in mutation_test.cpp), left out, applied twice or of something else, is noticed.
#include <ATen/ops/ones_like.h>
#include <gtest/gtest.h>

#include "train/differences.h"
#include "train/mistakes.h"

namespace torchtitan::train::testing {
namespace {

using collectives::Group;
using collectives::Operation;

// Two steps: Adam's first one is nearly the same for every factor of the gradient.
Problem of_two_steps(Problem problem) {
  problem.num_steps = 2;
  return problem;
}

// The divisor of the loss: the first sum of a step over the ranks with other tokens.
Mistake of_token_count(const std::string& name,
                       std::function<void(at::Tensor)> change) {
  constexpr int64_t kSumsOfAStep = 2;  // tokens, loss
  return {"loss: divided by " + name,
          around_calls([=](const Group& axis, const Operation& operation,
                           int64_t number) -> AtEnd {
            if (axis.name() != "loss" ||
                operation.verb != collectives::Verb::kAllReduce ||
                number % kSumsOfAStep != 0) {
              return {};
            }
            return [=](const at::Tensor& out) { change(out); };
          })};
}

Mistake of_gradient(const std::string& name, double factor) {
  return {"gradients: " + name, around_segment("head", {.gradient = factor})};
}

Mistake of_clipping(const std::string& name,
                    std::function<at::Tensor(const at::Tensor& clip)> change) {
  class Clipping final : public optim::Optimizer {
   public:
    Clipping(std::shared_ptr<Optimizer> inner,
             std::function<at::Tensor(const at::Tensor&)> change)
        : inner_(std::move(inner)), change_(std::move(change)) {}
    void step(size_t index, const ops::AdamScalars& scalars) override {
      inner_->step(index, changed(scalars));
    }
    void step_all(const ops::AdamScalars& scalars) override {
      inner_->step_all(changed(scalars));
    }

   private:
    ops::AdamScalars changed(ops::AdamScalars scalars) const {
      scalars.clip = change_(scalars.clip);
      return scalars;
    }
    std::shared_ptr<Optimizer> inner_;
    std::function<at::Tensor(const at::Tensor&)> change_;
  };
  return {"clipping: " + name, {.optimizer = [=](const Changes::Optimizer& right) {
            return std::make_shared<Clipping>(right, change);
          }}};
}

// Who counts what several ranks hold in the norm.
Mistake of_copies(const std::string& name, bool is_counted) {
  return {"norm: " + name, {.part = [=](nn::Model& part, const Group&) {
            for (auto& group : part.groups) {
              for (auto& parameter : group.parameters) {
                if (!parameter.piece) parameter.is_first_copy = is_counted;
              }
            }
          }}};
}

TEST(MutationOfNothing, IsNotNoticed) {
  const auto problem = with_documents(context_problem());
  const Layout layout = {.context = 2, .tensor = 2, .num_microbatches = 2};
  const auto reference = run_reference(problem);
  for (const auto& changes :
       {around_kernel({}), around_segment("tok_embeddings", SegmentMistake{}),
        around_segment("head", SegmentMistake{}),
        around_calls([](const auto&, const auto&, int64_t) { return AtEnd(); }),
        of_clipping("", [](const auto& clip) { return clip; }).changes}) {
    EXPECT_EQ(difference(run_step(problem, layout, changes), reference), "");
  }
}

TEST(MutationOfScales, OfDataRanksAndMicrobatchesAreNoticed) {
  const auto problem = of_two_steps(Problem{});
  const auto tokens = static_cast<double>(problem.rows * problem.seq_len);
  expect_noticed(
      "Fsdp3", problem, {.shards = 3, .num_microbatches = 2},
      {of_token_count("all tokens, also the ignored ones",
                      [=](const auto& count) { count.fill_(tokens); }),
       of_token_count("the tokens of one microbatch",
                      [](const auto& count) { count.div_(2); }),
       of_token_count("the tokens of one rank",
                      [](const auto& count) { count.div_(3); }),
       of_token_count("the number of ranks", [](const auto& count) { count.fill_(3); }),
       {"loss: averaged over the ranks", around_segment("head", {.output = 1.0 / 3})},
       of_gradient("averaged over the microbatches", 1.0 / 2),
       of_gradient("averaged over the data ranks", 1.0 / 3),
       of_gradient("not divided by the tokens", tokens)});
}

// Few tokens, so that the norm is above the 0.5 at which runs here clip.
TEST(MutationOfScales, OfClippingAreNoticed) {
  constexpr double kMaxNorm = 0.5;
  auto problem = of_two_steps(tensor_problem());
  problem.rows = 6;
  problem.seq_len = 4;
  ASSERT_GT(run_reference(problem).grad_norm, kMaxNorm);
  expect_noticed(
      "Fsdp3FewTokens", problem, {.shards = 3, .num_microbatches = 2},
      {of_clipping("left out", [](const auto& clip) { return at::ones_like(clip); }),
       of_clipping("twice", [](const auto& clip) { return clip.square(); }),
       of_clipping("by the squared norm",
                   [](const auto& clip) { return clip.square().div(kMaxNorm); })});
}

TEST(MutationOfScales, OfAccumulationAreNoticed) {
  const SegmentMistake overwrites = {.before_backward = [](const auto& parameters) {
    for (const auto& parameter : parameters) parameter.grad().zero_();
  }};
  std::vector<Mistake> mistakes;
  for (const char* segment : {"tok_embeddings", "layers.1", "head"}) {
    mistakes.push_back(
        {std::string("accumulation: overwritten by each microbatch in ") + segment,
         around_segment(segment, overwrites)});
  }
  expect_noticed("Ddp2", Problem{}, {.replicas = 2, .num_microbatches = 2}, mistakes);
}

TEST(MutationOfScales, OfTensorRanksAreNoticed) {
  expect_noticed("Tp2", of_two_steps(tensor_problem()), {.tensor = 2},
                 {of_gradient("of the loss once for each tensor rank", 2),
                  of_gradient("averaged over the tensor ranks", 0.5),
                  of_copies("what all tensor ranks hold counted by each", true),
                  of_copies("what all tensor ranks hold counted by none", false)});
}

TEST(MutationOfScales, OfContextRanksAreNoticed) {
  expect_noticed("Cp2Ring", context_problem(), {.context = 2},
                 {of_gradient("of the loss once for each context rank", 2),
                  of_gradient("averaged over the context ranks", 0.5),
                  of_token_count("the tokens of whole sequences of each context rank",
                                 [](const auto& count) { count.mul_(2); })});
}

TEST(MutationOfScales, OfStagesAreNoticed) {
  auto problem = tensor_problem();
  problem.args.tied_embeddings = true;
  expect_noticed("Pp2", problem, {.pipeline = 2, .num_microbatches = 2},
                 {of_gradient("averaged over the microbatches", 0.5),
                  of_copies("what two stages hold counted by both", true),
                  {"loss: averaged over the microbatches",
                   around_segment("head", {.output = 0.5})}});
}

}  // namespace
}  // namespace torchtitan::train::testing
