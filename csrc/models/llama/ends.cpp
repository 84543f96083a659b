#include "models/llama/ends.h"

#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "ops/cross_entropy.h"
#include "ops/fused.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"

// Shape letters: B batch, S sequence, N = B S tokens, C tokens of a chunk, E dim,
// V vocabulary.
namespace torchtitan::models::llama {
namespace {

using nn::TensorList;
using ops::Into;
namespace fused = ops::fused;

// Tokens whose logits exist at once: a product large enough to run at full speed.
constexpr int64_t kChunk = 1024;

struct Tokens final : nn::Segment::Saved {
  at::Tensor ids;
};

// Gradients of the loss sum, found in the forward pass while the logits were there; the
// backward pass scales them by the gradient of the sum.
struct LossGradients final : nn::Segment::Saved {
  at::Tensor h_BSE, rstd_N;
  at::Tensor normed_NE;  // gradient of the normed hidden states
  at::Tensor output_VE;  // gradient of the head's weight, wide
};

}  // namespace

Embedding::Embedding(nn::ParameterRef weight)
    : AutogradSegment("tok_embeddings", {"input"}, {"h"}, {weight}) {}

TensorList Embedding::compute(const TensorList& inputs,
                              const TensorList& parameters) const {
  return {at::embedding(parameters[0], inputs[0])};
}

TensorList Embedding::forward(const TensorList& inputs, const TensorList& parameters,
                              std::unique_ptr<Saved>* saved) {
  if (saved == nullptr || !fused::takes(parameters[0])) {
    return AutogradSegment::forward(inputs, parameters, saved);
  }
  const c10::AutoGradMode off(false);
  auto kept = std::make_unique<Tokens>();
  kept->ids = inputs[0];
  *saved = std::move(kept);
  return compute(inputs, parameters);
}

TensorList Embedding::backward(std::unique_ptr<Saved> saved,
                               const TensorList& output_gradients,
                               const TensorList& parameters) {
  const auto* kept = dynamic_cast<const Tokens*>(saved.get());
  if (kept == nullptr) {
    return AutogradSegment::backward(std::move(saved), output_gradients, parameters);
  }
  if (output_gradients[0].defined()) {
    const c10::AutoGradMode off(false);
    fused::embedding_backward(output_gradients[0], kept->ids, parameters[0].grad());
  }
  return {at::Tensor()};
}

nn::Flops Embedding::flops(const TensorList& /*inputs*/,
                           const TensorList& /*parameters*/) const {
  return {};
}

HeadSegment::HeadSegment(Head head, nn::ParameterRef norm, nn::ParameterRef output,
                         double norm_eps)
    : AutogradSegment("head",
                      head == Head::kLoss ? std::vector<std::string>{"h", "labels"}
                                          : std::vector<std::string>{"h"},
                      {head == Head::kLoss ? "loss" : "logits"}, {norm, output}),
      head_(head), norm_eps_(norm_eps) {}

TensorList HeadSegment::compute(const TensorList& inputs,
                                const TensorList& parameters) const {
  const auto normed_BSE = ops::rms_norm(inputs[0], parameters[0], norm_eps_);
  const auto logits_BSV = at::linear(normed_BSE, parameters[1]);
  if (head_ == Head::kLogits) return {logits_BSV};
  return {ops::cross_entropy_sum(logits_BSV, inputs[1])};
}

TensorList HeadSegment::forward(const TensorList& inputs, const TensorList& parameters,
                                std::unique_ptr<Saved>* saved) {
  const auto& norm = parameters[0];
  const auto& output_VE = parameters[1];
  if (head_ == Head::kLogits || !fused::takes(inputs[0]) ||
      output_VE.scalar_type() != inputs[0].scalar_type()) {
    return AutogradSegment::forward(inputs, parameters, saved);
  }
  const c10::AutoGradMode off(false);
  const auto h_BSE = inputs[0].contiguous();
  const auto h_NE = h_BSE.view({-1, h_BSE.size(-1)});
  const auto labels_N = inputs[1].contiguous().view({-1});
  const int64_t count = h_NE.size(0);
  const int64_t chunk = std::min(count, kChunk);
  const auto normed_CE = at::empty({chunk, h_NE.size(1)}, h_NE.options());
  const auto logits_CV = at::empty({chunk, output_VE.size(0)}, h_NE.options());
  const auto rstd_N = at::empty({count}, fused::wide_options(h_NE));
  LossGradients kept;
  if (saved != nullptr) {
    kept.normed_NE = at::empty_like(h_NE);
    kept.output_VE = at::zeros_like(output_VE, fused::wide_options(output_VE));
  }
  double loss = 0;
  for (int64_t first = 0; first < count; first += chunk) {
    const int64_t size = std::min(chunk, count - first);
    const auto normed = normed_CE.narrow(0, 0, size);
    const auto logits = logits_CV.narrow(0, 0, size);
    fused::rms_norm(h_NE.narrow(0, first, size), {}, norm, norm_eps_, normed,
                    rstd_N.narrow(0, first, size));
    ops::linear_(logits, normed, output_VE, Into::kOverwrite);
    loss += fused::cross_entropy_(
        logits, labels_N.narrow(0, first, size),
        saved == nullptr ? fused::Gradient::kNone : fused::Gradient::kInPlace);
    if (saved == nullptr) continue;
    ops::linear_backward_input_(kept.normed_NE.narrow(0, first, size), logits,
                                output_VE, Into::kOverwrite);
    ops::linear_backward_weight_(kept.output_VE, logits, normed);
  }
  if (saved != nullptr) {
    kept.h_BSE = h_BSE;
    kept.rstd_N = rstd_N;
    *saved = std::make_unique<LossGradients>(std::move(kept));
  }
  return {at::full({}, loss, h_NE.options().dtype(at::kDouble))};
}

TensorList HeadSegment::backward(std::unique_ptr<Saved> saved,
                                 const TensorList& output_gradients,
                                 const TensorList& parameters) {
  const auto* kept = dynamic_cast<const LossGradients*>(saved.get());
  if (kept == nullptr) {
    return AutogradSegment::backward(std::move(saved), output_gradients, parameters);
  }
  TensorList none(inputs().size());
  if (!output_gradients[0].defined()) return none;
  const c10::AutoGradMode off(false);
  const auto& sum_gradient = output_gradients[0];
  const double scale = sum_gradient.is_meta() ? 1.0 : sum_gradient.item<double>();
  parameters[1].grad().add_(kept->output_VE, scale);
  const auto& d_NE = kept->normed_NE;
  fused::rms_norm_backward(d_NE, scale, kept->h_BSE.view(d_NE.sizes()), parameters[0],
                           kept->rstd_N, {}, d_NE, parameters[0].grad());
  none[0] = d_NE.view_as(kept->h_BSE);
  return none;
}

nn::Flops HeadSegment::flops(const TensorList& inputs,
                             const TensorList& parameters) const {
  const int64_t forward = 2 * inputs[0].numel() * parameters[1].size(0);
  return {.forward = forward, .backward = 2 * forward};
}

}  // namespace torchtitan::models::llama
