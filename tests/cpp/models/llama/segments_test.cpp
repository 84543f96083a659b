// The hand-written passes of the segments give what autograd makes of their definition.
#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "core/cpu_allocator.h"
#include "core/memory_counter.h"
#include "models/llama/model.h"
#include "ops/cross_entropy.h"
#include "ops/linear.h"

namespace torchtitan::models::llama {
namespace {

using nn::TensorList;

struct Case {
  std::string name;
  int64_t batch, length;
  int64_t n_heads, n_kv_heads, dim, hidden_dim, vocab_size;
  at::ScalarType dtype;
  double tolerance;
};

class SegmentsTest : public ::testing::TestWithParam<Case> {
 protected:
  SegmentsTest()
      : c(GetParam()),
        model(build_model(c.dtype == at::kDouble ? at::kDouble : at::kFloat)) {
    at::manual_seed(5);
  }

  nn::Model build_model(at::ScalarType dtype) const {
    return build({.dim = c.dim,
                  .n_layers = 1,
                  .n_heads = c.n_heads,
                  .n_kv_heads = c.n_kv_heads,
                  .vocab_size = c.vocab_size,
                  .hidden_dim = c.hidden_dim,
                  .norm_eps = 1e-5,
                  .rope_theta = 1e4,
                  .rope_scaling = std::nullopt,
                  .max_seq_len = c.length + 3,
                  .depth_init = true,
                  .tied_embeddings = false},
                 {.head = Head::kLoss,
                  .device = at::kCPU,
                  .dtype = dtype,
                  .axis = {},
                  .loss_parallel = true});
  }

  // A leaf of `value` with a gradient of ones, as a group attaches it.
  static at::Tensor with_gradient(const at::Tensor& value) {
    auto leaf = value.detach().clone().set_requires_grad(true);
    const auto dtype = at::toOpMathType(value.scalar_type());
    leaf.set_grad_dtype(dtype);
    leaf.mutable_grad() = at::ones_like(value, value.options().dtype(dtype));
    return leaf;
  }

  TensorList parameters(size_t group) const {
    TensorList leaves;
    for (const auto& parameter : model.groups[group].parameters) {
      auto leaf = at::randn(parameter.shape, at::kDouble).mul(0.2).add(0.1).to(c.dtype);
      leaves.push_back(with_gradient(leaf));
    }
    return leaves;
  }

  TensorList inputs(size_t segment) const {
    const auto ids = at::randint(c.vocab_size, {c.batch, c.length}, at::kLong);
    if (segment == 0) return {ids};
    const auto h = at::randn({c.batch, c.length, c.dim}, at::kDouble).to(c.dtype);
    if (segment == 1) return {h};
    auto labels = ids.clone();
    labels.select(1, 0).fill_(ops::kIgnoreIndex);
    return {h, labels};
  }

  void expect_close(const at::Tensor& found, const at::Tensor& expected,
                    const char* what) {
    const auto exact = expected.to(at::kDouble);
    EXPECT_LE(found.to(at::kDouble).sub(exact).norm().item<double>(),
              c.tolerance * exact.norm().item<double>())
        << what;
  }

  // Two microbatches, each with a forward that keeps nothing first, as under activation
  // checkpointing.
  void expect_equal_to_autograd(size_t s) {
    auto& segment = dynamic_cast<nn::AutogradSegment&>(*model.segments[s]);
    const auto own = parameters(s);
    TensorList reference;
    for (const auto& leaf : own) reference.push_back(with_gradient(leaf));
    for (int microbatch = 0; microbatch < 2; ++microbatch) {
      const auto in = inputs(s);
      TensorList leaves;
      for (const auto& each : in) {
        leaves.push_back(each.clone().set_requires_grad(each.is_floating_point()));
      }
      const auto expected = segment.compute(leaves, reference).at(0);
      const auto kept_nothing = segment.forward(in, own, nullptr).at(0);
      std::unique_ptr<nn::Segment::Saved> saved;
      const auto found = segment.forward(in, own, &saved).at(0);
      expect_close(kept_nothing, expected.detach(), "output without saving");
      expect_close(found, expected.detach(), "output");
      const auto gradient = expected.dim() == 0 ? at::full({}, 0.25, expected.options())
                                                : at::randn_like(expected.detach());
      torch::autograd::backward({expected}, {gradient});
      const auto input_gradients =
          segment.backward(std::move(saved), {gradient.to(found.scalar_type())}, own);
      ASSERT_EQ(input_gradients.size(), in.size());
      for (size_t i = 0; i < in.size(); ++i) {
        ASSERT_EQ(input_gradients[i].defined(), in[i].is_floating_point());
        if (input_gradients[i].defined()) {
          expect_close(input_gradients[i], leaves[i].grad(), "input gradient");
        }
      }
    }
    for (size_t slot = 0; slot < own.size(); ++slot) {
      expect_close(own[slot].grad(), reference[slot].grad(),
                   model.groups[s].parameters[slot].name.c_str());
    }
  }

  Case c;
  nn::Model model;
};

TEST_P(SegmentsTest, TheEmbeddingEqualsAutograd) { expect_equal_to_autograd(0); }
TEST_P(SegmentsTest, TheBlockEqualsAutograd) { expect_equal_to_autograd(1); }
TEST_P(SegmentsTest, TheHeadEqualsAutograd) { expect_equal_to_autograd(2); }

TEST_P(SegmentsTest, AnUndefinedOutputGradientChangesNothing) {
  for (size_t s = 0; s < 3; ++s) {
    const auto own = parameters(s);
    std::unique_ptr<nn::Segment::Saved> saved;
    model.segments[s]->forward(inputs(s), own, &saved);
    for (const auto& gradient :
         model.segments[s]->backward(std::move(saved), {at::Tensor()}, own)) {
      EXPECT_FALSE(gradient.defined());
    }
    for (const auto& leaf : own) EXPECT_TRUE(leaf.grad().eq(1).all().item<bool>());
  }
}

// The most bytes that the library of the products takes for itself, beyond what they
// take on meta, in a product of `rows` activations with one of the parameters.
int64_t library_memory(const TensorList& parameters, int64_t rows) {
  int64_t most = 0;
  for (const auto& w : parameters) {
    if (w.dim() != 2) continue;
    const auto peak = [&](const at::Device& device, core::MemoryCounter& memory) {
      const auto options = w.options().device(device);
      const auto like_w = at::ones_like(w, options);
      const auto x = at::ones({rows, w.size(1)}, options);
      const auto y = at::ones({rows, w.size(0)}, options);
      const auto dw = at::ones_like(w.grad(), w.grad().options().device(device));
      const int64_t before = memory.live();
      memory.reset_peak();
      for (const auto into : {ops::Into::kOverwrite, ops::Into::kAdd}) {
        ops::linear_(y, x, like_w, into);
        ops::linear_backward_input_(x, y, like_w, into);
      }
      ops::linear_backward_weight_(dw, y, x);
      return memory.peak() - before;
    };
    most = std::max(most, peak(at::kCPU, core::cpu_memory()) -
                              peak(at::kMeta, core::meta_memory()));
  }
  return most;
}

TEST_P(SegmentsTest, OnMetaTheyTakeAndKeepTheSameMemory) {
  struct Bytes {
    int64_t kept, forward_peak, backward_peak;
  };
  const auto on = [](const TensorList& tensors, const at::Device& device) {
    TensorList there;
    for (const auto& tensor : tensors) {
      const auto moved = tensor.detach().to(device);
      there.push_back(tensor.grad().defined() ? with_gradient(moved) : moved);
    }
    return there;
  };
  const auto bytes = [&](size_t s, const at::Device& device,
                         core::MemoryCounter& memory) {
    const auto own = on(parameters(s), device);
    const auto in = on(inputs(s), device);
    std::unique_ptr<nn::Segment::Saved> saved;
    const int64_t before = memory.live();
    memory.reset_peak();
    const auto out = model.segments[s]->forward(in, own, &saved);
    Bytes result{memory.live() - before, memory.peak() - before, 0};
    memory.reset_peak();
    model.segments[s]->backward(std::move(saved), {at::ones_like(out[0])}, own);
    result.backward_peak = memory.peak() - before;
    return result;
  };
  for (size_t s = 1; s < 3; ++s) {  // an embedding on meta needs torch's Python half
    const auto real = bytes(s, at::kCPU, core::cpu_memory());
    const auto meta = bytes(s, at::kMeta, core::meta_memory());
    const int64_t library = library_memory(parameters(s), c.batch * c.length);
    EXPECT_NEAR(real.kept, meta.kept, 64) << s;
    EXPECT_GE(real.forward_peak, meta.forward_peak - 64) << s;
    EXPECT_LE(real.forward_peak, meta.forward_peak + library + 64) << s;
    // Scalars and the like; nothing that grows with the batch.
    EXPECT_GE(real.backward_peak, meta.backward_peak - 1024) << s;
    EXPECT_LE(real.backward_peak, meta.backward_peak + library + 1024) << s;
  }
}

// Against float64 on the same numbers: the passes round less often than autograd does,
// and never worse.
TEST_P(SegmentsTest, TheyAreAsExactAsAutogradInTheirDtype) {
  const auto distance = [](const at::Tensor& found, const at::Tensor& exact) {
    return found.to(at::kDouble).sub(exact).norm().item<double>();
  };
  const auto exact_model = build_model(at::kDouble);
  for (size_t s = 0; s < 3; ++s) {
    auto& segment = dynamic_cast<nn::AutogradSegment&>(*model.segments[s]);
    auto& exact_segment = dynamic_cast<nn::AutogradSegment&>(*exact_model.segments[s]);
    struct Run {
      TensorList parameters, inputs;
      at::Tensor output;
    } own, autograd, exact;
    own.parameters = parameters(s);
    own.inputs = inputs(s);
    const auto copy = [&](Run& run, bool widen) {
      const auto cast = [&](const at::Tensor& t) {
        return widen && t.is_floating_point() ? t.to(at::kDouble) : t;
      };
      for (const auto& leaf : own.parameters) {
        run.parameters.push_back(with_gradient(cast(leaf.detach())));
        run.parameters.back().mutable_grad().zero_();
      }
      for (const auto& input : own.inputs) {
        run.inputs.push_back(
            cast(input).clone().set_requires_grad(input.is_floating_point()));
      }
    };
    copy(autograd, false);
    copy(exact, true);
    for (const auto& leaf : own.parameters) leaf.mutable_grad().zero_();

    std::unique_ptr<nn::Segment::Saved> saved;
    own.output = segment.forward(own.inputs, own.parameters, &saved).at(0);
    const auto gradient = at::randn_like(own.output);
    const auto input_gradients =
        segment.backward(std::move(saved), {gradient}, own.parameters);
    autograd.output = segment.compute(autograd.inputs, autograd.parameters).at(0);
    exact.output = exact_segment.compute(exact.inputs, exact.parameters).at(0);
    for (const auto* run : {&autograd, &exact}) {
      torch::autograd::backward({run->output},
                                {gradient.to(run->output.scalar_type())});
    }

    const auto expect = [&](const at::Tensor& found, const at::Tensor& plain,
                            const at::Tensor& reference, const std::string& what) {
      const double error = distance(found, reference);
      const double allowed = c.tolerance * reference.norm().item<double>();
      EXPECT_LE(error, allowed) << what;
      // A hundredth of the tolerance: both may be all but exact.
      EXPECT_LE(error, 1.5 * distance(plain, reference) + 1e-2 * allowed) << what;
    };
    expect(own.output, autograd.output.detach(), exact.output.detach(), "output");
    for (size_t i = 0; i < own.inputs.size(); ++i) {
      if (!own.inputs[i].is_floating_point()) continue;
      expect(input_gradients[i], autograd.inputs[i].grad(), exact.inputs[i].grad(),
             "input gradient");
    }
    for (size_t i = 0; i < own.parameters.size(); ++i) {
      expect(own.parameters[i].grad(), autograd.parameters[i].grad(),
             exact.parameters[i].grad(), model.groups[s].parameters[i].name);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SegmentsTest,
    ::testing::Values(
        Case{"Grouped", 2, 37, 6, 2, 36, 50, 61, at::kDouble, 1e-10},
        Case{"OneToken", 1, 1, 2, 2, 8, 10, 9, at::kDouble, 1e-10},
        // More tokens than one chunk of the head, more than one block of attention.
        Case{"Long", 3, 400, 2, 1, 8, 12, 17, at::kDouble, 1e-10},
        Case{"Float", 2, 130, 4, 2, 64, 96, 257, at::kFloat, 1e-5},
        Case{"BFloat16", 2, 9, 4, 2, 16, 24, 33, at::kBFloat16, 2e-2},
        // More tokens than one panel of the products.
        Case{"LongBFloat16", 7, 300, 4, 2, 64, 96, 257, at::kBFloat16, 2e-2}),
    [](const auto& info) { return info.param.name; });

TEST(Segments, ALabelOutsideTheVocabularyIsRefused) {
  const auto model = build({.dim = 4,
                            .n_layers = 1,
                            .n_heads = 1,
                            .n_kv_heads = 1,
                            .vocab_size = 5,
                            .hidden_dim = 4,
                            .norm_eps = 1e-5,
                            .rope_theta = 1e4,
                            .rope_scaling = std::nullopt,
                            .max_seq_len = 2,
                            .depth_init = true,
                            .tied_embeddings = false},
                           {.head = Head::kLoss,
                            .device = at::kCPU,
                            .dtype = at::kFloat,
                            .axis = {},
                            .loss_parallel = true});
  const auto labels = at::full({1, 2}, 5, at::kLong);
  EXPECT_THROW(model.segments[2]->forward({at::ones({1, 2, 4}), labels},
                                          {at::ones({4}), at::ones({5, 4})}, nullptr),
               c10::IndexError);
}

}  // namespace
}  // namespace torchtitan::models::llama
