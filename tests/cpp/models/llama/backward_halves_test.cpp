// The halves of a segment's backward give the gradients of the whole, bit by bit, in
// any interleaving that keeps the order of microbatches, and send what they say.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "collectives/local_world.h"
#include "collectives/recording.h"
#include "models/llama/model.h"
#include "nn/loss_segment.h"
#include "nn/whole_group.h"
#include "ops/cross_entropy.h"

namespace torchtitan::models::llama {
namespace {

using nn::TensorList;
using Values = std::map<std::string, at::Tensor>;

constexpr int64_t kRows = 2, kLength = 8, kVocabulary = 37;

struct Case {
  std::string name;
  int64_t ranks;
  Head head;
  bool loss_parallel;
  bool hand_written;
  at::ScalarType dtype = at::kDouble;
  nn::Overlap overlap = nn::Overlap::kNone;
};

nn::Model build_model(const Case& c, const collectives::Group& axis) {
  // With a rotary table of another dtype than the passes take, `compute` runs.
  const auto table = c.dtype == at::kDouble ? at::kDouble : at::kFloat;
  auto model = build({.dim = 16,
                      .n_layers = 2,
                      .n_heads = 8,
                      .n_kv_heads = 4,
                      .vocab_size = kVocabulary,
                      .hidden_dim = 20,
                      .norm_eps = 1e-5,
                      .rope_theta = 1e4,
                      .rope_scaling = std::nullopt,
                      .max_seq_len = kLength,
                      .depth_init = true,
                      .tied_embeddings = false},
                     {.head = c.head,
                      .device = at::kCPU,
                      .dtype = c.hand_written ? table : at::kFloat,
                      .axis = nn::TensorAxis(axis, c.overlap),
                      .loss_parallel = c.loss_parallel});
  if (c.head == Head::kLoss) return model;
  return nn::with_loss(std::move(model),
                       [](const at::Tensor& logits, const at::Tensor& labels) {
                         return ops::cross_entropy_sum(logits.to(at::kDouble), labels);
                       });
}

// The model with gradients, and two microbatches between forward and backward.
class Passes {
 public:
  Passes(const Case& c, const collectives::Group& axis)
      : recorder(std::make_shared<collectives::Recorder>()),
        model_(build_model(c, collectives::recorded(axis, recorder))) {
    for (const auto& spec : model_.groups) {
      groups_.push_back(std::make_unique<nn::WholeGroup>(
          spec,
          nn::GroupOptions{.master_dtype = c.dtype,
                           .compute_dtype = c.dtype,
                           .reduce_dtype = c.dtype,
                           .device = at::Device(at::kCPU)},
          collectives::Group("dp_replicate")));
      groups_.back()->initialize(3);
      groups_.back()->zero_gradient();
      groups_.back()->refresh();
    }
    for (int64_t microbatch = 0; microbatch < 2; ++microbatch) {
      const auto ids = at::arange(kRows * kLength, at::kLong)
                           .mul(7 + microbatch)
                           .remainder(kVocabulary)
                           .view({kRows, kLength});
      auto labels = ids.roll(1, 1);
      labels.select(1, 5).fill_(ops::kIgnoreIndex);
      forward(microbatch, {{"input", ids}, {"labels", labels}});
    }
  }

  size_t size() const { return model_.segments.size(); }

  void backward(int64_t microbatch, size_t s) {
    set_input_gradients(
        microbatch, s,
        model_.segments[s]->backward(std::move(states_[microbatch].saved[s]),
                                     output_gradients(microbatch, s), leaves(s)));
  }
  void backward_input(int64_t microbatch, size_t s) {
    auto& state = states_[microbatch];
    set_input_gradients(microbatch, s,
                        model_.segments[s]->backward_input(
                            std::move(state.saved[s]), output_gradients(microbatch, s),
                            leaves(s), &state.rest[s]));
  }
  void backward_weight(int64_t microbatch, size_t s) {
    model_.segments[s]->backward_weight(std::move(states_[microbatch].rest[s]),
                                        leaves(s));
  }

  nn::Exchanges exchanges(size_t s) {
    return model_.segments[s]->exchanges(states_[0].inputs[s], leaves(s));
  }
  const std::string& name(size_t s) const { return model_.segments[s]->name(); }

  std::map<std::string, at::Tensor> gradients() const {
    std::map<std::string, at::Tensor> all;
    for (const auto& group : groups_) {
      for (const auto& shard : group->shards()) all[shard.name] = shard.gradient;
    }
    return all;
  }

  std::shared_ptr<collectives::Recorder> recorder;

 private:
  struct State {
    Values values, gradients;
    std::vector<TensorList> inputs;
    std::vector<std::unique_ptr<nn::Segment::Saved>> saved, rest;
  };

  TensorList leaves(size_t s) const {
    TensorList result;
    for (const auto& reference : model_.segments[s]->parameters()) {
      result.push_back(groups_[static_cast<size_t>(reference.group)]
                           ->leaves()[static_cast<size_t>(reference.slot)]);
    }
    return result;
  }

  void forward(int64_t microbatch, Values values) {
    auto& state = states_[microbatch];
    state.values = std::move(values);
    state.saved.resize(size());
    state.rest.resize(size());
    for (size_t s = 0; s < size(); ++s) {
      auto& segment = *model_.segments[s];
      TensorList inputs;
      for (const auto& input : segment.inputs()) {
        inputs.push_back(state.values.at(input));
      }
      const auto outputs = segment.forward(inputs, leaves(s), &state.saved[s]);
      for (size_t i = 0; i < outputs.size(); ++i) {
        state.values[segment.outputs()[i]] = outputs[i];
      }
      state.inputs.push_back(inputs);
    }
  }

  TensorList output_gradients(int64_t microbatch, size_t s) {
    auto& state = states_[microbatch];
    TensorList result;
    for (const auto& output : model_.segments[s]->outputs()) {
      result.push_back(output == "loss" ? at::full_like(state.values[output], 0.25)
                                        : state.gradients[output]);
    }
    return result;
  }

  void set_input_gradients(int64_t microbatch, size_t s, const TensorList& gradients) {
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (gradients[i].defined()) {
        states_[microbatch].gradients[model_.segments[s]->inputs()[i]] = gradients[i];
      }
    }
  }

  nn::Model model_;
  std::vector<std::unique_ptr<nn::WholeGroup>> groups_;
  State states_[2];
};

void run_whole(Passes& run) {
  for (int64_t microbatch = 0; microbatch < 2; ++microbatch) {
    for (size_t s = run.size(); s-- > 0;) run.backward(microbatch, s);
  }
}

// All first halves, then all second ones from the first segment on.
void run_halves(Passes& run) {
  for (int64_t microbatch = 0; microbatch < 2; ++microbatch) {
    for (size_t s = run.size(); s-- > 0;) run.backward_input(microbatch, s);
  }
  for (const auto& [name, gradient] : run.gradients()) {
    const bool is_early = name.ends_with("norm.weight") || name == "output.weight";
    EXPECT_TRUE(is_early || gradient.eq(0).all().item<bool>()) << name;
  }
  for (size_t s = 0; s < run.size(); ++s) {
    for (int64_t microbatch = 0; microbatch < 2; ++microbatch) {
      run.backward_weight(microbatch, s);
    }
  }
}

class BackwardHalvesTest : public ::testing::TestWithParam<Case> {
 protected:
  // `body` on each rank of the case.
  static void on_ranks(const std::function<void(const collectives::Group&)>& body) {
    const int64_t ranks = GetParam().ranks;
    if (ranks == 1) return body(collectives::Group("tp"));
    const collectives::LocalWorld world(ranks, std::chrono::seconds(60));
    world.run([&](int64_t rank) { body(world.group(rank, "tp")); });
  }
};

TEST_P(BackwardHalvesTest, EqualTheWholeBitByBit) {
  on_ranks([](const collectives::Group& axis) {
    Passes whole(GetParam(), axis), halves(GetParam(), axis);
    run_whole(whole);
    run_halves(halves);
    for (const auto& [name, expected] : whole.gradients()) {
      EXPECT_GT(expected.abs().sum().item<double>(), 0) << name;
      EXPECT_TRUE(at::equal(halves.gradients().at(name), expected)) << name;
    }
  });
}

TEST_P(BackwardHalvesTest, SendWhatTheySay) {
  if (GetParam().ranks == 1) return;
  on_ranks([](const collectives::Group& axis) {
    Passes run(GetParam(), axis);
    using Traffic = std::map<std::string, std::pair<int64_t, int64_t>>;
    const auto expect = [&](const std::vector<plan::Exchange>& said, size_t s,
                            const char* half) {
      Traffic expected, found;
      for (const auto& exchange : said) {
        expected[exchange.verb].first += 1;
        expected[exchange.verb].second += exchange.bytes;
      }
      for (const auto& [key, traffic] : run.recorder->totals()) {
        found[key.second] = {traffic.calls, traffic.bytes};
      }
      EXPECT_EQ(found, expected) << half << " of " << run.name(s);
    };
    for (size_t s = run.size(); s-- > 0;) {
      run.recorder->reset();
      run.backward_input(0, s);
      expect(run.exchanges(s).backward_input, s, "first half");
      run.recorder->reset();
      run.backward_weight(0, s);
      expect(run.exchanges(s).backward_weight, s, "second half");
      run.recorder->reset();
      run.backward(1, s);
      expect(run.exchanges(s).backward, s, "whole");
    }
  });
}

constexpr auto kRing = nn::Overlap::kRing;
INSTANTIATE_TEST_SUITE_P(
    Llama, BackwardHalvesTest,
    ::testing::Values(Case{"Loss", 1, Head::kLoss, true, true},
                      Case{"Float", 1, Head::kLoss, true, true, at::kFloat},
                      Case{"BFloat16", 1, Head::kLoss, true, true, at::kBFloat16},
                      Case{"Logits", 1, Head::kLogits, true, true},
                      Case{"Autograd", 1, Head::kLoss, true, false},
                      Case{"Loss2", 2, Head::kLoss, true, true},
                      Case{"WholeLogitsLoss2", 2, Head::kLoss, false, true},
                      Case{"Logits2", 2, Head::kLogits, true, true},
                      Case{"Ring2", 2, Head::kLoss, true, true, at::kDouble, kRing},
                      Case{"Autograd2", 2, Head::kLoss, true, false},
                      Case{"AutogradRing2", 2, Head::kLogits, true, false, at::kDouble,
                           kRing}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace torchtitan::models::llama
