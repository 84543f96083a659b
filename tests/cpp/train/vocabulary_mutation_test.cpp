// Every mistake about which classes of a divided vocabulary a rank has, in the
// embedding and in the loss, and in how the ranks' parts of the loss are put together,
// is noticed.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "ops/cross_entropy.h"
#include "train/mistakes.h"

namespace torchtitan::train::testing {
namespace {

using collectives::Group;

// Every class occurs, and the ranks have 7 and 6 of them.
Problem vocabulary_problem() {
  auto problem = tensor_problem();
  problem.args.vocab_size = 13;
  return problem;
}

const Layout kLayout = {.tensor = 2};

// Classes [first, end) of a rank.
struct Range {
  int64_t first, end;
  at::Tensor holds(const at::Tensor& ids) const {
    return ids.ge(first).logical_and(ids.lt(end));
  }
};

Range range_of(const nn::Model& part, const std::string& weight) {
  const auto& parameter = find_parameter(part, weight);
  return {parameter.offset()[0], parameter.offset()[0] + parameter.shape[0]};
}

// Ids that the right code takes as the wrong code takes the given ones: what the mask
// leaves out is looked up as the rank's first class.
using Taken = std::function<at::Tensor(const at::Tensor& ids, const Range& range)>;
struct RangeMistake {
  std::string name;
  Taken taken;
};

std::vector<RangeMistake> range_mistakes() {
  const auto become = [](const at::Tensor& ids, const at::Tensor& where,
                         int64_t value) { return ids.masked_fill(where, value); };
  return {
      {"mask left out",
       [=](const auto& ids, const auto& range) {
         return become(ids, range.holds(ids).logical_not(), range.first);
       }},
      {"mask without its lower bound",
       [=](const auto& ids, const auto& range) {
         return become(ids, ids.lt(range.first), range.first);
       }},
      {"mask without its upper bound",
       [=](const auto& ids, const auto& range) {
         return become(ids, ids.ge(range.end), range.first);
       }},
      {"first class of the range left out",
       [=](const auto& ids, const auto& range) {
         return become(ids, ids.eq(range.first), -1);
       }},
      {"last class of the range left out",
       [=](const auto& ids, const auto& range) {
         return become(ids, ids.eq(range.end - 1), -1);
       }},
      {"every rank takes its range for the first one",
       [](const auto& ids, const auto& range) { return ids.add(range.first); }},
      {"range off by one", [](const auto& ids, const auto&) { return ids.add(1); }}};
}

// The wrapped segment's inputs[index] are ids.
Changes of_range(const std::string& segment, const std::string& weight, size_t index,
                 const Taken& taken) {
  return around_segment(segment, [=](const nn::Model& part, const Group&) {
    const auto range = range_of(part, weight);
    return SegmentMistake{.inputs = [=](nn::TensorList& inputs) {
      auto& ids = inputs.at(index);
      ids = at::where(ids.eq(ops::kIgnoreIndex), ids, taken(ids, range));
    }};
  });
}

TEST(MutationOfTheVocabulary, EveryMistakeOfTheEmbeddingIsNoticed) {
  std::vector<Mistake> mistakes;
  for (const auto& [name, taken] : range_mistakes()) {
    mistakes.push_back({"embedding: " + name,
                        of_range("tok_embeddings", "tok_embeddings.weight", 0, taken)});
  }
  // The mask of the backward alone: rows of other ranks' ids go to the first row.
  const auto spill = [](const nn::Model& part, const Group& tensor) {
    const auto range = range_of(part, "tok_embeddings.weight");
    return SegmentMistake{.after_backward = [=](const auto& inputs,
                                                const auto& gradients,
                                                const auto& parameters) {
      const auto own = gradients[0].contiguous();
      const auto all = at::empty({inputs[0].numel(), own.size(-1)}, own.options());
      tensor.all_gather(all, own).wait();
      const auto away = range.holds(inputs[0].flatten()).logical_not().unsqueeze(1);
      parameters[0].grad().select(0, 0).add_(all.mul(away).sum(0));
    }};
  };
  mistakes.push_back({"embedding: mask left out in the backward",
                      around_segment("tok_embeddings", spill)});
  expect_noticed("Tp2", vocabulary_problem(), kLayout, mistakes);
}

TEST(MutationOfTheVocabulary, EveryMistakeAboutTheLabelsIsNoticed) {
  std::vector<Mistake> mistakes;
  for (const auto& [name, taken] : range_mistakes()) {
    mistakes.push_back({"loss: " + name, of_range("head", "output.weight", 1, taken)});
  }
  mistakes.push_back({"loss: ignored labels count",
                      around_segment("head", {.inputs = [](nn::TensorList& inputs) {
                                       inputs[1] = inputs[1].masked_fill(
                                           inputs[1].eq(ops::kIgnoreIndex), 0);
                                     }})});
  expect_noticed("Tp2", vocabulary_problem(), kLayout, mistakes);
}

// [ranks, 3, N]: largest logit, sum of exponentials, logit of the label.
TEST(MutationOfTheVocabulary, EveryMistakeAboutTheRanksStatisticsIsNoticed) {
  const auto problem = vocabulary_problem();
  const int64_t tokens = problem.rows * problem.seq_len;
  const auto of_statistics = [&](const std::function<void(const at::Tensor&)>& change) {
    return around_calls([=](const Group& axis, const collectives::Operation& operation,
                            int64_t) -> AtEnd {
      const int64_t numel = axis.size() * 3 * tokens;
      if (axis.name() != "tp" || operation.verb != collectives::Verb::kAllGather ||
          operation.out.numel() != numel) {
        return {};
      }
      return [=](const at::Tensor& out) { change(out.view({axis.size(), 3, tokens})); };
    });
  };
  expect_noticed(
      "Tp2", problem, kLayout,
      {{"loss: sums of exponentials not rescaled", of_statistics([](const auto& all) {
          all.select(1, 0).copy_(all.select(1, 0).amax(0, true).expand({2, -1}));
        })},
       {"loss: sum of the first rank's exponentials only",
        of_statistics([](const auto& all) { all[1][1].zero_(); })},
       {"loss: logit of the label of the first rank only",
        of_statistics([](const auto& all) { all[1][2].zero_(); })},
       {"loss: largest logits of the ranks exchanged",
        of_statistics([](const auto& all) {
          all.select(1, 0).copy_(all.select(1, 0).flip(0));
        })}});
}

}  // namespace
}  // namespace torchtitan::train::testing
