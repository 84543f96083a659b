// The differentiable form of the model over a tensor axis: loss, logits and gradients
// are those of the whole model.
#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "collectives/fake_group.h"
#include "collectives/local_world.h"
#include "models/llama/model.h"
#include "nn/whole_group.h"
#include "ops/cross_entropy.h"

namespace torchtitan::models::llama {
namespace {

Args args() {
  return {.dim = 16,
          .n_layers = 2,
          .n_heads = 8,
          .n_kv_heads = 4,
          .vocab_size = 37,
          .hidden_dim = 20,
          .norm_eps = 1e-5,
          .rope_theta = 1e4,
          .rope_scaling = std::nullopt,
          .max_seq_len = 8,
          .depth_init = true,
          .tied_embeddings = false};
}

struct Case {
  std::string name;
  int64_t ranks;
  Head head;
  bool loss_parallel;
  nn::Overlap overlap = nn::Overlap::kNone;
};

struct Parts {
  std::map<std::string, nn::ParameterShard> shards;  // with gradients
  at::Tensor result;
};

// The gradient of the sum of squared logits, or of the loss.
Parts run(const Case& c, const collectives::Group& axis) {
  const auto model = build(args(), {.head = c.head,
                                    .device = at::kCPU,
                                    .dtype = at::kDouble,
                                    .axis = nn::TensorAxis(axis, c.overlap),
                                    .loss_parallel = c.loss_parallel});
  Parts parts;
  std::vector<nn::TensorList> leaves;
  for (const auto& spec : model.groups) {
    nn::WholeGroup group(spec,
                         {.master_dtype = at::kDouble,
                          .compute_dtype = at::kDouble,
                          .reduce_dtype = at::kDouble,
                          .device = at::Device(at::kCPU)},
                         collectives::Group("dp_replicate"));
    group.initialize(3);
    leaves.emplace_back();
    for (auto shard : group.shards()) {
      leaves.back().push_back(shard.value.clone().set_requires_grad(true));
      shard.value = leaves.back().back();
      parts.shards.emplace(shard.name, shard);
    }
  }
  const auto ids = at::arange(24, at::kLong).mul(7).remainder(37).view({3, 8});
  auto labels = ids.roll(1, 1);
  labels.select(1, 5).fill_(ops::kIgnoreIndex);
  const auto values = nn::forward(model, leaves, {{"input", ids}, {"labels", labels}});
  if (c.head == Head::kLoss) {
    parts.result = values.at("loss");
    torch::autograd::backward({parts.result}, {});
  } else {
    parts.result = values.at("logits");
    torch::autograd::backward({parts.result.square().sum()}, {});
  }
  return parts;
}

class TensorParallelTest : public ::testing::TestWithParam<Case> {};

TEST_P(TensorParallelTest, EqualsTheWholeModel) {
  const auto& c = GetParam();
  const auto whole = run(c, collectives::Group("tp"));
  const collectives::LocalWorld world(c.ranks, std::chrono::seconds(60));
  world.run([&](int64_t rank) {
    const auto own = run(c, world.group(rank, "tp"));
    EXPECT_TRUE(at::allclose(own.result, whole.result, 1e-12, 1e-12));
    for (const auto& [name, shard] : own.shards) {
      auto expected = whole.shards.at(name).value.grad();
      for (int64_t d = 0; d < expected.dim(); ++d) {
        expected = expected.narrow(d, shard.offset[static_cast<size_t>(d)],
                                   shard.value.size(d));
      }
      EXPECT_TRUE(at::allclose(shard.value.grad(), expected, 1e-10, 1e-12))
          << name << " on rank " << rank;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    Llama, TensorParallelTest,
    ::testing::Values(Case{"Loss2", 2, Head::kLoss, true},
                      Case{"Loss4", 4, Head::kLoss, true},
                      Case{"WholeLogitsLoss2", 2, Head::kLoss, false},
                      Case{"WholeLogitsLoss4", 4, Head::kLoss, false},
                      Case{"Logits2", 2, Head::kLogits, true},
                      Case{"Logits4", 4, Head::kLogits, true},
                      Case{"Ring2", 2, Head::kLoss, true, nn::Overlap::kRing},
                      Case{"Ring4", 4, Head::kLoss, true, nn::Overlap::kRing},
                      Case{"LogitsRing4", 4, Head::kLogits, true, nn::Overlap::kRing}),
    [](const auto& info) { return info.param.name; });

TEST(LlamaTensorParallel, RefusesRanksThatDoNotDivideTheHeads) {
  const auto build_over = [](int64_t ranks) {
    return build(args(),
                 {.head = Head::kLoss,
                  .device = at::kMeta,
                  .dtype = at::kFloat,
                  .axis = nn::TensorAxis(collectives::fake_group("tp", 0, ranks),
                                         nn::Overlap::kNone),
                  .loss_parallel = true});
  };
  EXPECT_NO_THROW(build_over(4));
  try {
    build_over(8);
    FAIL() << "8 ranks were accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "tensor_parallel_degree: expected a divisor of n_kv_heads = 4 and of "
                 "hidden_dim = 20 (1, 2, 4), found 8");
  }
}

}  // namespace
}  // namespace torchtitan::models::llama
