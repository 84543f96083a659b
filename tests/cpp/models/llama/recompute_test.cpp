// A block that keeps some results and computes the others again has the gradients of
// one that keeps all, bit by bit, and computes, sends and keeps what it says.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "collectives/local_world.h"
#include "collectives/recording.h"
#include "core/memory_counter.h"
#include "models/llama/model.h"
#include "parallel/context/attention.h"

namespace torchtitan::models::llama {
namespace {

using nn::TensorList;

constexpr int64_t kRows = 2, kLength = 8, kDim = 16;
constexpr size_t kOperations = 7;

std::vector<bool> subset(unsigned bits) {
  std::vector<bool> kept;
  for (size_t i = 0; i < kOperations; ++i) kept.push_back((bits >> i & 1U) != 0);
  return kept;
}

nn::Model build_model(
    const nn::TensorAxis& axis, at::ScalarType table = at::kDouble,
    const std::shared_ptr<nn::AttentionKernel>& attention = nn::local_attention()) {
  return build({.dim = kDim,
                .n_layers = 1,
                .n_heads = 8,
                .n_kv_heads = 4,
                .vocab_size = 37,
                .hidden_dim = 20,
                .norm_eps = 1e-5,
                .rope_theta = 1e4,
                .rope_scaling = std::nullopt,
                .max_seq_len = kLength,
                .depth_init = true,
                .tied_embeddings = false},
               {.head = Head::kLoss,
                .device = at::kCPU,
                .dtype = table,
                .axis = axis,
                .loss_parallel = true,
                .attention = attention});
}

struct BlockRun {
  explicit BlockRun(
      const nn::TensorAxis& axis, at::Device device = at::kCPU,
      at::ScalarType dtype = at::kDouble,
      const std::shared_ptr<nn::AttentionKernel>& attention = nn::local_attention())
      : model(build_model(axis, dtype == at::kDouble ? at::kDouble : at::kFloat,
                          attention)),
        block(*model.segments[1]),
        length(kLength / (axis.size() * attention->ranks())) {
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
    for (const auto& parameter : model.groups[1].parameters) {
      auto leaf =
          at::randn(parameter.whole_shape(), generator, at::kDouble).mul(0.2).add(0.1);
      for (size_t d = 0; d < parameter.shape.size(); ++d) {
        leaf = leaf.narrow(static_cast<int64_t>(d), parameter.offset()[d],
                           parameter.shape[d]);
      }
      leaf = leaf.contiguous().to(dtype).to(device).set_requires_grad(true);
      leaf.mutable_grad() = at::zeros_like(leaf);
      weights.push_back(leaf);
    }
    x = at::randn({kRows, kLength, kDim}, generator, at::kDouble)
            .narrow(1, axis.rank() * length, length)
            .contiguous()
            .to(dtype)
            .to(device);
  }

  // Gradients of all weights and of x; `between` is called before the recomputation.
  TensorList gradients(const std::vector<bool>* kept,
                       const std::function<void(bool before)>& between = {}) {
    for (const auto& weight : weights) weight.mutable_grad().zero_();
    std::unique_ptr<nn::Segment::Saved> some, saved;
    TensorList output;
    if (kept == nullptr) {
      output = block.forward({x}, weights, &saved);
    } else {
      block.keep(*kept);
      output = block.forward_for_recompute({x}, weights, &some);
      if (between) between(true);
      block.recompute({x}, weights, std::move(some), &saved);
      if (between) between(false);
    }
    TensorList result = {
        output[0], block.backward(std::move(saved), {output[0].cos()}, weights)[0]};
    for (const auto& weight : weights) result.push_back(weight.grad().clone());
    return result;
  }

  nn::Model model;
  nn::Segment& block;
  int64_t length;
  TensorList weights;
  at::Tensor x;
};

void expect_equal(const TensorList& found, const TensorList& expected,
                  const std::string& what) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_TRUE(at::equal(found[i], expected[i])) << what << ", tensor " << i;
  }
}

// A weight whose product was kept is not read by the recomputation: it is spoiled
// there.
TEST(LlamaRecompute, EveryKeptSubsetGivesTheSameBitsWithoutTheKeptProducts) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    BlockRun run({}, at::kCPU, dtype);
    const auto expected = run.gradients(nullptr);
    const auto operations = run.block.operations({kRows, kLength, dtype});
    ASSERT_EQ(operations.size(), kOperations);
    const unsigned step = dtype == at::kDouble ? 1 : 9;
    for (unsigned bits = 0; bits < 1U << kOperations; bits += step) {
      const auto kept = subset(bits);
      const auto found = run.gradients(&kept, [&](bool before) {
        const c10::AutoGradMode off(false);
        for (size_t i = 0; i < kOperations; ++i) {
          if (kept[i] && operations[i].weight) {
            run.weights[*operations[i].weight].mul_(before ? 0.5 : 2.0);
          }
        }
      });
      expect_equal(found, expected, "kept " + std::to_string(bits));
    }
  }
}

// The check above notices a block that keeps another set than it was told.
TEST(LlamaRecompute, AnotherKeptSetIsNoticed) {
  BlockRun run({});
  const auto expected = run.gradients(nullptr);
  const auto operations = run.block.operations({kRows, kLength, at::kDouble});
  for (size_t i = 0; i < kOperations; ++i) {
    if (!operations[i].weight) continue;
    const auto weight = run.weights[*operations[i].weight];
    const std::vector<bool> without(kOperations, false);
    const auto found = run.gradients(&without, [&](bool before) {
      const c10::AutoGradMode off(false);
      weight.mul_(before ? 0.5 : 2.0);
    });
    bool differs = false;
    for (size_t t = 0; t < found.size(); ++t) {
      differs = differs || !at::equal(found[t], expected[t]);
    }
    EXPECT_TRUE(differs) << operations[i].name;
  }
}

TEST(LlamaRecompute, KeepsTheBytesOfItsOperationsAndTheScalesOfTheNorms) {
  for (const auto dtype : {at::kDouble, at::kBFloat16}) {
    BlockRun run({}, at::kMeta, dtype);
    const auto operations = run.block.operations({kRows, kLength, dtype});
    auto& memory = core::meta_memory();
    const int64_t scale = dtype == at::kDouble ? 8 : 4;
    for (unsigned bits = 0; bits < 1U << kOperations; ++bits) {
      int64_t expected = bits == 0 ? 0 : 2 * kRows * kLength * scale;
      for (size_t i = 0; i < kOperations; ++i) {
        if (subset(bits)[i]) expected += operations[i].bytes;
      }
      run.block.keep(subset(bits));
      const int64_t before = memory.live();
      std::unique_ptr<nn::Segment::Saved> kept;
      run.block.forward_for_recompute({run.x}, run.weights, &kept);
      EXPECT_EQ(memory.live() - before, expected) << bits;
    }
  }
}

TEST(LlamaRecompute, FlopsAreThoseOfWhatIsMissing) {
  BlockRun run({});
  const auto operations = run.block.operations({kRows, kLength, at::kDouble});
  int64_t all = 0;
  for (const auto& each : operations) all += each.flops;
  const auto of = [&](unsigned bits) {
    run.block.keep(subset(bits));
    return run.block.flops({run.x}, run.weights).recompute;
  };
  EXPECT_EQ(of(0), all);
  for (size_t i = 0; i < kOperations; ++i) {
    EXPECT_EQ(of(1U << i), all - operations[i].flops) << operations[i].name;
  }
  EXPECT_EQ(of((1U << kOperations) - 1), 0);
}

// What a run's recomputations send, and say that they send, by verb.
void expect_to_send_what_it_says(BlockRun& run, collectives::Recorder& recorder) {
  const auto expected = run.gradients(nullptr);
  for (unsigned bits = 0; bits < 1U << kOperations; bits += 3) {
    const auto kept = subset(bits);
    std::map<std::string, std::pair<int64_t, int64_t>> said, sent;
    const auto found = run.gradients(&kept, [&](bool before) {
      if (before) return recorder.reset();
      for (const auto& [key, traffic] : recorder.totals()) {
        sent[key.second] = {traffic.calls, traffic.bytes};
      }
    });
    for (const auto& exchange : run.block.exchanges({run.x}, run.weights).recompute) {
      said[exchange.verb].first += 1;
      said[exchange.verb].second += exchange.bytes;
    }
    EXPECT_EQ(sent, said) << bits;
    expect_equal(found, expected, "kept " + std::to_string(bits));
  }
}

TEST(LlamaRecompute, OverTensorRanksItSendsWhatItSays) {
  const collectives::LocalWorld world(2, std::chrono::seconds(60));
  world.run([&](int64_t rank) {
    const auto recorder = std::make_shared<collectives::Recorder>();
    const nn::TensorAxis axis(collectives::recorded(world.group(rank, "tp"), recorder),
                              nn::Overlap::kNone);
    BlockRun run(axis);
    expect_to_send_what_it_says(run, *recorder);
  });
}

TEST(LlamaRecompute, OverContextRanksItSendsWhatItSays) {
  using parallel::context::Method;
  for (const Method method : {Method::kAllGather, Method::kRing, Method::kUlysses}) {
    const collectives::LocalWorld world(2, std::chrono::seconds(60));
    world.run([&](int64_t rank) {
      const auto recorder = std::make_shared<collectives::Recorder>();
      BlockRun run({}, at::kCPU, at::kDouble,
                   parallel::context::attention(
                       collectives::recorded(world.group(rank, "cp"), recorder), method,
                       parallel::context::Balance::kHeadTail));
      expect_to_send_what_it_says(run, *recorder);
    });
  }
}

// The differentiable form runs again as a whole.
TEST(LlamaRecompute, WhereAutogradRunsItNothingIsKept) {
  BlockRun run({});
  run.model = build_model({}, at::kFloat);
  auto& block = *run.model.segments[1];
  block.keep(subset(0x7f));
  std::unique_ptr<nn::Segment::Saved> kept, saved;
  const auto output = block.forward_for_recompute({run.x}, run.weights, &kept);
  EXPECT_EQ(kept, nullptr);
  block.recompute({run.x}, run.weights, nullptr, &saved);
  const auto again = block.backward(std::move(saved), {output[0].cos()}, run.weights);
  block.forward({run.x}, run.weights, &saved);
  EXPECT_TRUE(at::equal(
      again[0], block.backward(std::move(saved), {output[0].cos()}, run.weights)[0]));
  const auto flops = block.flops({run.x}, run.weights);
  EXPECT_EQ(flops.recompute, flops.forward);
}

}  // namespace
}  // namespace torchtitan::models::llama
