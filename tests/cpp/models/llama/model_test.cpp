#include "models/llama/model.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "nn/initialize.h"

namespace torchtitan::models::llama {
namespace {

Args small() {
  return {.dim = 16,
          .n_layers = 3,
          .n_heads = 4,
          .n_kv_heads = 2,
          .vocab_size = 32,
          .hidden_dim = 24,
          .norm_eps = 1e-5,
          .rope_theta = 1e4,
          .rope_scaling = std::nullopt,
          .max_seq_len = 16,
          .depth_init = true,
          .tied_embeddings = false};
}

nn::Model build_on(const Args& args, at::Device device, Head head = Head::kLogits) {
  return build(args, {.head = head,
                      .device = device,
                      .dtype = at::kDouble,
                      .axis = {},
                      .loss_parallel = true});
}

int64_t count(const nn::Model& model) {
  int64_t total = 0;
  for (const auto& group : model.groups) {
    for (const auto& parameter : group.parameters) {
      int64_t numel = 1;
      for (const int64_t size : parameter.shape) numel *= size;
      total += numel;
    }
  }
  return total;
}

std::vector<nn::TensorList> initial(const nn::Model& model) {
  std::vector<nn::TensorList> parameters;
  for (const auto& group : model.groups) {
    nn::TensorList list;
    for (const auto& parameter : group.parameters) {
      list.push_back(at::empty(parameter.shape, at::kDouble));
      nn::fill_initial(list.back(), parameter, parameter.offset(), 5);
    }
    parameters.push_back(list);
  }
  return parameters;
}

at::Tensor logits(const nn::Model& model, const at::Tensor& tokens) {
  return nn::forward(model, initial(model), {{"input", tokens}}).at("logits");
}

TEST(Llama, CountsItsParameters) {
  EXPECT_EQ(count(build_on(small(), at::kMeta)), small().num_params());
  auto tied = small();
  tied.tied_embeddings = true;
  EXPECT_EQ(count(build_on(tied, at::kMeta)), tied.num_params());
  EXPECT_EQ(small().num_params() - tied.num_params(), 32 * 16);
}

TEST(Llama, TheLargestModelIsBuiltWithoutMemory) {
  auto args = small();
  args.dim = 16384;
  args.n_layers = 126;
  args.n_heads = 128;
  args.n_kv_heads = 8;
  args.vocab_size = 128256;
  args.hidden_dim = 53248;
  EXPECT_EQ(count(build_on(args, at::kMeta)), 405853388800);
}

TEST(Llama, ALaterTokenDoesNotChangeEarlierLogits) {
  const auto model = build_on(small(), at::kCPU);
  const auto tokens = at::arange(10, at::kLong).view({1, 10});
  auto changed = tokens.clone();
  changed[0][7] = 31;
  const auto before = logits(model, tokens);
  const auto after = logits(model, changed);
  EXPECT_TRUE(at::equal(before.narrow(1, 0, 7), after.narrow(1, 0, 7)));
  EXPECT_FALSE(at::equal(before.select(1, 7), after.select(1, 7)));
}

TEST(Llama, RowsOfABatchAreIndependent) {
  const auto model = build_on(small(), at::kCPU);
  const auto tokens = at::arange(20, at::kLong).view({2, 10});
  const auto both = logits(model, tokens);
  const auto swapped = logits(model, tokens.flip({0}));
  EXPECT_LT(both.sub(swapped.flip({0})).abs().max().item<double>(), 1e-12);
}

TEST(Llama, LossIsTheSumOverValidLabels) {
  const auto tokens = at::arange(10, at::kLong).view({1, 10});
  auto labels = tokens.add(1);
  labels[0][2] = -100;
  const auto model = build_on(small(), at::kCPU, Head::kLoss);
  const auto loss =
      nn::forward(model, initial(model), {{"input", tokens}, {"labels", labels}})
          .at("loss");
  const auto log_probabilities =
      at::log_softmax(logits(build_on(small(), at::kCPU), tokens), -1);
  double expected = 0;
  for (int64_t i = 0; i < 10; ++i) {
    if (i != 2) expected -= log_probabilities[0][i][i + 1].item<double>();
  }
  EXPECT_NEAR(loss.item<double>(), expected, 1e-10);
}

TEST(Llama, RefusesSizesThatDoNotFitTogether) {
  auto args = small();
  args.n_kv_heads = 3;
  try {
    args.validate();
    FAIL() << "3 kv heads do not divide 4 heads";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "llama3 n_kv_heads: expected a divisor of n_heads = 4, found 3");
  }
  args = small();
  args.dim = 18;
  EXPECT_THROW(args.validate(), std::invalid_argument);
  args = small();
  args.vocab_size = 0;
  EXPECT_THROW(args.validate(), std::invalid_argument);
}

TEST(Llama, ASequenceLongerThanTheRotaryTableIsRefused) {
  const auto model = build_on(small(), at::kCPU);
  EXPECT_THROW(logits(model, at::zeros({1, 17}, at::kLong)), c10::ValueError);
}

}  // namespace
}  // namespace torchtitan::models::llama
