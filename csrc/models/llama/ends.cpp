#include "models/llama/ends.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "base/checked_math.h"
#include "nn/tensor_products.h"
#include "nn/vocabulary_loss.h"
#include "ops/cross_entropy.h"
#include "ops/fused.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/vocabulary_cross_entropy.h"

// Shape letters: B batch, S sequence, N = B S tokens, s, n: of which this rank's, C
// tokens of a chunk, E dim, V this rank's vocabulary.
namespace torchtitan::models::llama {
namespace {

using nn::TensorList;
namespace fused = ops::fused;

// Tokens whose logits exist at once: a product large enough to run at full speed.
constexpr int64_t kChunk = 1024;

struct Tokens final : nn::Segment::Saved {
  at::Tensor ids;
};

struct Untouched final : nn::Segment::Saved {
  std::unique_ptr<nn::Segment::Saved> saved;
  TensorList output_gradients;
};

// Gradients of the loss sum, found in the forward pass while the logits were there; the
// backward pass scales them by the gradient of the sum.
struct LossGradients final : nn::Segment::Saved {
  at::Tensor h_BsE, rstd_n;
  at::Tensor normed_nE;  // gradient of the normed hidden states
  at::Tensor output_VE;  // gradient of the head's weight, wide
};

}  // namespace

Embedding::Embedding(nn::ParameterRef weight, Vocabulary vocabulary,
                     nn::TensorAxis axis)
    : AutogradSegment("tok_embeddings", {"input"}, {"h"}, {weight}),
      vocabulary_(vocabulary), axis_(std::move(axis)) {}

Embedding::Rows Embedding::rows(const at::Tensor& ids, const at::Tensor& weight) const {
  const auto index = ids.sub(vocabulary_.first);
  const auto is_here = index.ge(0).logical_and_(index.lt(weight.size(0)));
  return {index.mul(is_here), is_here.unsqueeze(-1)};
}

TensorList Embedding::compute(const TensorList& inputs,
                              const TensorList& parameters) const {
  const auto& weight = parameters[0];
  if (!axis_.is_split()) return {at::embedding(weight, inputs[0])};
  // A rank without any class looks up a row of zeros.
  const auto table =
      weight.size(0) > 0 ? weight : at::constant_pad_nd(weight, {0, 0, 0, 1});
  const auto [index, is_here] = rows(inputs[0], weight);
  return {nn::sum_scatter_tokens(at::embedding(table, index).mul(is_here), axis_)};
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
    auto d_BSE = axis_.gather(output_gradients[0].contiguous().flatten(0, 1))
                     .view({kept->ids.size(0), kept->ids.size(1), -1});
    auto ids = kept->ids;
    if (axis_.is_split()) {
      const auto found = rows(ids, parameters[0]);
      ids = found.index;
      d_BSE.mul_(found.is_here);
    }
    if (parameters[0].size(0) > 0) {
      fused::embedding_backward(d_BSE, ids, parameters[0].grad());
    }
  }
  return {at::Tensor()};
}

TensorList Embedding::backward_input(std::unique_ptr<Saved> saved,
                                     const TensorList& output_gradients,
                                     const TensorList& parameters,
                                     std::unique_ptr<Saved>* rest) {
  if (dynamic_cast<const Tokens*>(saved.get()) == nullptr) {
    return AutogradSegment::backward_input(std::move(saved), output_gradients,
                                           parameters, rest);
  }
  auto untouched = std::make_unique<Untouched>();
  untouched->saved = std::move(saved);
  untouched->output_gradients = output_gradients;
  *rest = std::move(untouched);
  return {at::Tensor()};
}

void Embedding::backward_weight(std::unique_ptr<Saved> rest,
                                const TensorList& parameters) {
  auto* untouched = dynamic_cast<Untouched*>(rest.get());
  if (untouched == nullptr) {
    return AutogradSegment::backward_weight(std::move(rest), parameters);
  }
  backward(std::move(untouched->saved), untouched->output_gradients, parameters);
}

nn::Flops Embedding::flops(const TensorList& /*inputs*/,
                           const TensorList& /*parameters*/) const {
  return {};
}

nn::Exchanges Embedding::exchanges(const TensorList& inputs,
                                   const TensorList& parameters) const {
  using Verb = nn::TensorAxis::Verb;
  const auto& weight = parameters[0];
  const int64_t numel = inputs[0].numel() * weight.size(1);
  nn::Exchanges result;
  axis_.note(result.forward, Verb::kSumScatter, numel, weight.options());
  result.recompute = result.forward;
  axis_.note(result.backward, Verb::kGather, numel, weight.options());
  result.backward_weight = result.backward;
  return result;
}

HeadSegment::HeadSegment(const HeadOptions& options, nn::ParameterRef norm,
                         nn::ParameterRef output)
    : AutogradSegment(
          "head",
          options.head == Head::kLoss ? std::vector<std::string>{"h", "labels"}
                                      : std::vector<std::string>{"h"},
          {options.head == Head::kLoss ? "loss" : "logits"}, {norm, output}),
      options_(options) {}

TensorList HeadSegment::compute(const TensorList& inputs,
                                const TensorList& parameters) const {
  const auto& axis = options_.axis;
  const auto normed_BsE = ops::rms_norm(
      inputs[0], nn::shared_by_ranks(parameters[0], axis), options_.norm_eps);
  const auto part_BSV = nn::gathered_linear(normed_BsE, {parameters[1]}, axis)[0];
  if (options_.head == Head::kLoss && axis.is_split() && options_.loss_parallel) {
    return {nn::vocabulary_loss_sum(part_BSV.flatten(0, 1), inputs[1].flatten(),
                                    options_.vocabulary.first, axis)};
  }
  const auto logits_BSV = nn::gather_columns(part_BSV, options_.vocabulary.total, axis);
  if (options_.head == Head::kLogits) return {logits_BSV};
  return {ops::cross_entropy_sum(logits_BSV, inputs[1])};
}

bool HeadSegment::is_hand_written(const at::Tensor& h, const at::Tensor& output) const {
  return options_.head == Head::kLoss && fused::takes(h) &&
         output.scalar_type() == h.scalar_type() &&
         (options_.loss_parallel || !options_.axis.is_split());
}

double HeadSegment::chunk_loss(const at::Tensor& logits_CV, const at::Tensor& labels_C,
                               fused::Gradient gradient) const {
  if (!options_.axis.is_split()) {
    return fused::cross_entropy_(logits_CV, labels_C, gradient);
  }
  const int64_t first = options_.vocabulary.first;
  const auto [sum, log_sum_exp] =
      nn::vocabulary_loss(logits_CV, labels_C, first, options_.axis);
  if (gradient == fused::Gradient::kInPlace) {
    ops::vocabulary_gradient_(logits_CV, labels_C, first, log_sum_exp);
  }
  return sum.is_meta() ? 0.0 : sum.item<double>();
}

TensorList HeadSegment::forward(const TensorList& inputs, const TensorList& parameters,
                                std::unique_ptr<Saved>* saved) {
  const auto& norm = parameters[0];
  const auto& output_VE = parameters[1];
  if (!is_hand_written(inputs[0], output_VE)) {
    return AutogradSegment::forward(inputs, parameters, saved);
  }
  const c10::AutoGradMode off(false);
  const auto& axis = options_.axis;
  const auto h_BsE = inputs[0].contiguous();
  const auto h_nE = h_BsE.view({-1, h_BsE.size(-1)});
  const int64_t count = h_nE.size(0), ranks = axis.size();
  // A chunk is some of each rank's tokens.
  const auto labels_Rn = inputs[1].contiguous().view({ranks, count});
  const int64_t chunk = std::min(count, base::ceil_div(kChunk, ranks));
  const auto normed_cE = at::empty({chunk, h_nE.size(1)}, h_nE.options());
  const auto logits_CV = at::empty({chunk * ranks, output_VE.size(0)}, h_nE.options());
  const auto rstd_n = at::empty({count}, fused::wide_options(h_nE));
  LossGradients kept;
  if (saved != nullptr) {
    kept.normed_nE = at::empty_like(h_nE);
    kept.output_VE = at::zeros_like(output_VE, fused::wide_options(output_VE));
  }
  double loss = 0;
  for (int64_t first = 0; first < count; first += chunk) {
    const int64_t size = std::min(chunk, count - first);
    const auto own = normed_cE.narrow(0, 0, size);
    fused::rms_norm(h_nE.narrow(0, first, size), {}, norm, options_.norm_eps, own,
                    rstd_n.narrow(0, first, size));
    const auto logits = logits_CV.narrow(0, 0, size * ranks);
    const auto normed = nn::gathered_products_({logits}, own, {output_VE}, axis);
    loss += chunk_loss(
        logits, labels_Rn.narrow(1, first, size).contiguous().view({-1}),
        saved == nullptr ? fused::Gradient::kNone : fused::Gradient::kInPlace);
    if (saved == nullptr) continue;
    const auto d = nn::gathered_products_backward({logits}, {output_VE}, axis);
    ops::linear_backward_weight_(kept.output_VE, logits, normed);
    kept.normed_nE.narrow(0, first, size).copy_(d.wait());
  }
  if (saved != nullptr) {
    kept.h_BsE = h_BsE;
    kept.rstd_n = rstd_n;
    *saved = std::make_unique<LossGradients>(std::move(kept));
  }
  return {at::full({}, loss, h_nE.options().dtype(at::kDouble))};
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
  const auto& d_nE = kept->normed_nE;
  const auto norm = options_.axis.partial_gradient(parameters[0].grad());
  fused::rms_norm_backward(d_nE, scale, kept->h_BsE.view(d_nE.sizes()), parameters[0],
                           kept->rstd_n, {}, d_nE, norm);
  options_.axis.add_sums_({parameters[0].grad()}, {norm});
  none[0] = d_nE.view_as(kept->h_BsE);
  return none;
}

TensorList HeadSegment::backward_input(std::unique_ptr<Saved> saved,
                                       const TensorList& output_gradients,
                                       const TensorList& parameters,
                                       std::unique_ptr<Saved>* rest) {
  if (dynamic_cast<const LossGradients*>(saved.get()) == nullptr) {
    return AutogradSegment::backward_input(std::move(saved), output_gradients,
                                           parameters, rest);
  }
  rest->reset();
  return backward(std::move(saved), output_gradients, parameters);
}

nn::Flops HeadSegment::flops(const TensorList& inputs,
                             const TensorList& parameters) const {
  const int64_t forward =
      2 * inputs[0].numel() * options_.axis.size() * parameters[1].size(0);
  return {.forward = forward,
          .backward = 2 * forward,
          .recompute = forward,
          .weight = is_hand_written(inputs[0], parameters[1]) ? 0 : forward};
}

nn::Exchanges HeadSegment::exchanges(const TensorList& inputs,
                                     const TensorList& parameters) const {
  using Verb = nn::TensorAxis::Verb;
  const auto& axis = options_.axis;
  const auto& h = inputs[0];
  const auto& norm = parameters[0];
  const int64_t tokens = h.numel() / h.size(-1) * axis.size();
  const int64_t hidden = h.numel() * axis.size();
  nn::Exchanges result;
  if (is_hand_written(h, parameters[1])) {
    const int64_t count = tokens / axis.size();
    const int64_t chunk = std::min(count, base::ceil_div(kChunk, axis.size()));
    for (int64_t first = 0; first < count; first += chunk) {
      const int64_t size = std::min(chunk, count - first) * axis.size();
      axis.note(result.forward, Verb::kGatherStretches, size * h.size(-1), h.options());
      axis.note(result.forward, Verb::kGather, size * 3 * axis.size(),
                fused::wide_options(h));
      axis.note(result.forward, Verb::kSumScatterStretches, size * h.size(-1),
                h.options());
    }
    axis.note(result.backward, Verb::kSum, norm.numel(), norm.grad().options());
    result.backward_input = result.backward;
    result.recompute = result.forward;
    return result;
  }
  axis.note(result.forward, Verb::kGatherStretches, hidden, h.options());
  if (options_.head == Head::kLoss && options_.loss_parallel) {
    axis.note(result.forward, Verb::kGather, tokens * 3 * axis.size(),
              fused::wide_options(h));
  } else {
    const int64_t columns = base::ceil_div(options_.vocabulary.total, axis.size());
    axis.note(result.forward, Verb::kGather, tokens * columns * axis.size(),
              h.options());
  }
  axis.note(result.backward, Verb::kGather, hidden, h.options());
  axis.note(result.backward, Verb::kSumScatterStretches, hidden, h.options());
  axis.note(result.backward, Verb::kSum, norm.numel(), fused::wide_options(norm));
  axis.note(result.backward_input, Verb::kSumScatterStretches, hidden, h.options());
  axis.note(result.backward_weight, Verb::kGather, hidden, h.options());
  axis.note(result.backward_weight, Verb::kSum, norm.numel(),
            fused::wide_options(norm));
  result.recompute = result.forward;
  return result;
}

}  // namespace torchtitan::models::llama
