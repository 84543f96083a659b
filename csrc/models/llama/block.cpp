#include "models/llama/block.h"

#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "nn/tensor_products.h"
#include "ops/fused.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

// Shape letters: B batch, S sequence, N = B S tokens, E dim, D head dim; s, n: of which
// this rank's; H query heads, G kv heads, F hidden dim: this rank's.
namespace torchtitan::models::llama {
namespace {

using nn::TensorList;
namespace fused = ops::fused;

at::Tensor tokens(const at::Tensor& x) { return x.view({x.size(0) * x.size(1), -1}); }

// [n, E] of all ranks through each weight, [N, outputs].
TensorList projections(const at::Tensor& x, const TensorList& weights,
                       const nn::TensorAxis& axis) {
  TensorList outputs;
  for (const auto& w : weights) {
    outputs.push_back(at::empty({x.size(0) * axis.size(), w.size(0)}, x.options()));
  }
  nn::gathered_products_(outputs, x, weights, axis);
  return outputs;
}

// Undefined where the mask is causal only.
at::Tensor document_starts(const TensorList& inputs) {
  return inputs.size() > 1 ? inputs[1] : at::Tensor();
}

}  // namespace

// What backward needs; the normed inputs and the gated product are computed again.
// Between a forward and its recomputation some is missing: the input, and what keep()
// did not ask for.
struct Block::Kept final : Saved {
  at::Tensor x_BsE, rstd1_n;
  at::Tensor document_starts;
  nn::AttentionKernel::Operands attended;  // rotated
  nn::AttentionKernel::Result attention;
  at::Tensor h_nE, rstd2_n;
  at::Tensor gate_NF, up_NF;

  std::vector<at::Tensor*> tensors() override {
    return {&x_BsE,      &rstd1_n,     &attended.q,    &attended.k,
            &attended.v, &attention.o, &attention.lse, &h_nE,
            &rstd2_n,    &gate_NF,     &up_NF};
  }
};

Block::Block(std::string name, std::vector<nn::ParameterRef> parameters,
             const Args& args, ops::RopeTable rope,
             std::shared_ptr<const nn::AttentionKernel> attention, nn::TensorAxis axis)
    : AutogradSegment(std::move(name),
                      args.document_masks
                          ? std::vector<std::string>{"h", "document_starts"}
                          : std::vector<std::string>{"h"},
                      {"h"}, std::move(parameters)),
      args_(args), rope_(std::move(rope)), attention_(std::move(attention)),
      axis_(std::move(axis)) {}

nn::TokenPlaces Block::places(const at::Tensor& x,
                              const at::Tensor& document_starts) const {
  return attention_->places(x.size(1) * axis_.size(), document_starts, x.device());
}

at::Tensor Block::heads(const at::Tensor& x) const {
  return x.unflatten(-1, {-1, args_.head_dim()});
}

TensorList Block::compute(const TensorList& inputs, const TensorList& w) const {
  const auto& x_BsE = inputs[0];
  const auto normed = [&](const at::Tensor& x, BlockSlot norm) {
    return ops::rms_norm(x, nn::shared_by_ranks(w[norm], axis_), args_.norm_eps);
  };
  const auto qkv = nn::gathered_linear(normed(x_BsE, kAttentionNorm),
                                       {w[kWq], w[kWk], w[kWv]}, axis_);
  const auto here = places(x_BsE, document_starts(inputs));
  const auto q_BSHD = ops::apply_rope(heads(qkv[0]), rope_, here.own);
  const auto k_BSGD = ops::apply_rope(heads(qkv[1]), rope_, here.own);
  const auto o_BSE = attention_->attend(q_BSHD, k_BSGD, heads(qkv[2]), here).flatten(2);
  const auto h_BsE = x_BsE.add(nn::linear_sum(o_BSE, w[kWo], axis_));

  const auto gate_up =
      nn::gathered_linear(normed(h_BsE, kFfnNorm), {w[kW1], w[kW3]}, axis_);
  const auto g_BSF = ops::swiglu(gate_up[0], gate_up[1]);
  return {h_BsE.add(nn::linear_sum(g_BSF, w[kW2], axis_))};
}

bool Block::is_hand_written(const at::Tensor& x, const TensorList& parameters) const {
  return fused::takes(x) && rope_.cos.dtype() == fused::wide_options(x).dtype() &&
         x.numel() > 0 &&
         std::all_of(parameters.begin(), parameters.end(),
                     [&](const at::Tensor& parameter) {
                       return parameter.scalar_type() == x.scalar_type() &&
                              parameter.is_contiguous();
                     });
}

at::Tensor Block::complete(Kept& kept, const TensorList& inputs,
                           const TensorList& w) const {
  const auto& x = inputs[0];
  kept.document_starts = document_starts(inputs);
  kept.x_BsE = x.contiguous();
  const auto x_nE = tokens(kept.x_BsE);
  const auto normed_nE = at::empty_like(x_nE);
  const auto norm = [&](const at::Tensor& of, const at::Tensor& residual,
                        BlockSlot weight, at::Tensor& rstd) {
    if (!rstd.defined()) rstd = at::empty({of.size(0)}, fused::wide_options(of));
    fused::rms_norm(of, residual, w[weight], args_.norm_eps, normed_nE, rstd);
  };

  TensorList missing_weights;
  std::vector<at::Tensor*> missing;
  const auto want = [&](at::Tensor& result, BlockSlot weight) {
    if (result.defined()) return;
    missing.push_back(&result);
    missing_weights.push_back(w[weight]);
  };
  const auto project = [&] {
    auto found = projections(normed_nE, missing_weights, axis_);
    for (size_t i = 0; i < found.size(); ++i) *missing[i] = std::move(found[i]);
    missing.clear();
    missing_weights.clear();
  };

  auto& attended = kept.attended;
  nn::AttentionKernel::Operands fresh;
  const auto want_fresh = [&](const at::Tensor& had, at::Tensor& result,
                              BlockSlot weight) {
    if (!had.defined()) want(result, weight);
  };
  want_fresh(attended.q, fresh.q, kWq);
  want_fresh(attended.k, fresh.k, kWk);
  want_fresh(attended.v, fresh.v, kWv);
  const auto here = places(x, kept.document_starts);
  if (!missing.empty()) {
    norm(x_nE, {}, kAttentionNorm, kept.rstd1_n);
    project();
    for (auto* each : {&fresh.q, &fresh.k, &fresh.v}) {
      if (!each->defined()) continue;
      *each = each->view({x.size(0), x.size(1) * axis_.size(), -1, args_.head_dim()});
      if (each != &fresh.v) fused::rope_(*each, rope_, here.own, fused::Turn::kForward);
    }
    fresh = attention_->enter(std::move(fresh));
    if (fresh.q.defined()) attended.q = std::move(fresh.q);
    if (fresh.k.defined()) attended.k = std::move(fresh.k);
    if (fresh.v.defined()) attended.v = std::move(fresh.v);
  }
  if (!kept.attention.o.defined()) {
    kept.attention = attention_->forward(attended, here);
  }

  const bool is_fresh = !kept.h_nE.defined();
  if (is_fresh) {
    kept.h_nE = nn::product_sum(tokens(kept.attention.o.flatten(2)), w[kWo], axis_);
  }
  want(kept.gate_NF, kW1);
  want(kept.up_NF, kW3);
  if (is_fresh || !missing.empty()) {
    // Adds the residual to h on the way.
    norm(kept.h_nE, is_fresh ? x_nE : at::Tensor(), kFfnNorm, kept.rstd2_n);
  }
  if (!missing.empty()) project();
  return normed_nE;
}

TensorList Block::finish(const Kept& kept, const at::Tensor& gated_NF,
                         const at::Tensor& y_nE, const TensorList& w) const {
  fused::swiglu(kept.gate_NF, kept.up_NF, gated_NF);
  at::Tensor(y_nE).copy_(kept.h_nE);
  nn::add_product_sum_(y_nE, gated_NF, w[kW2], axis_);
  return {y_nE.view_as(kept.x_BsE)};
}

TensorList Block::forward(const TensorList& inputs, const TensorList& w,
                          std::unique_ptr<Saved>* saved) {
  if (!is_hand_written(inputs[0], w)) return AutogradSegment::forward(inputs, w, saved);
  const c10::AutoGradMode off(false);
  auto kept = std::make_unique<Kept>();
  const auto normed_nE = complete(*kept, inputs, w);
  // Where nothing is kept the product may take the gate's place.
  auto outputs =
      finish(*kept, saved == nullptr ? kept->gate_NF : at::empty_like(kept->gate_NF),
             normed_nE, w);
  if (saved != nullptr) *saved = std::move(kept);
  return outputs;
}

TensorList Block::forward_for_recompute(const TensorList& inputs, const TensorList& w,
                                        std::unique_ptr<Saved>* kept) {
  if (!is_hand_written(inputs[0], w)) {
    return AutogradSegment::forward_for_recompute(inputs, w, kept);
  }
  const c10::AutoGradMode off(false);
  auto all = std::make_unique<Kept>();
  const auto normed_nE = complete(*all, inputs, w);
  auto outputs = finish(
      *all, keeps(kGate) ? at::empty_like(all->gate_NF) : all->gate_NF, normed_nE, w);
  all->x_BsE.reset();
  if (!keeps(kQ)) all->attended.q.reset();
  if (!keeps(kK)) all->attended.k.reset();
  if (!keeps(kV)) all->attended.v.reset();
  if (!keeps(kAttended)) all->attention = {};
  if (!keeps(kH)) all->h_nE.reset();
  if (!keeps(kGate)) all->gate_NF.reset();
  if (!keeps(kUp)) all->up_NF.reset();
  kept->reset();
  for (size_t i = 0; i < kNumResults; ++i) {
    if (keeps(i)) {
      *kept = std::move(all);
      break;
    }
  }
  return outputs;
}

void Block::recompute(const TensorList& inputs, const TensorList& w,
                      std::unique_ptr<Saved> kept, std::unique_ptr<Saved>* saved) {
  if (!is_hand_written(inputs[0], w)) {
    return AutogradSegment::recompute(inputs, w, std::move(kept), saved);
  }
  const c10::AutoGradMode off(false);
  if (!kept) kept = std::make_unique<Kept>();
  complete(static_cast<Kept&>(*kept), inputs, w);
  *saved = std::move(kept);
}

TensorList Block::backward(std::unique_ptr<Saved> saved,
                           const TensorList& output_gradients, const TensorList& w) {
  auto* kept = dynamic_cast<Kept*>(saved.get());
  if (kept == nullptr) {
    return AutogradSegment::backward(std::move(saved), output_gradients, w);
  }
  nn::WeightProducts products(axis_, w);
  return backward(*kept, output_gradients[0], w, products);
}

TensorList Block::backward_input(std::unique_ptr<Saved> saved,
                                 const TensorList& output_gradients,
                                 const TensorList& w, std::unique_ptr<Saved>* rest) {
  auto* kept = dynamic_cast<Kept*>(saved.get());
  if (kept == nullptr) {
    return AutogradSegment::backward_input(std::move(saved), output_gradients, w, rest);
  }
  auto products = std::make_unique<nn::WeightProducts>(axis_);
  auto gradients = backward(*kept, output_gradients[0], w, *products);
  *rest = std::move(products);
  return gradients;
}

void Block::backward_weight(std::unique_ptr<Saved> rest, const TensorList& w) {
  auto* products = dynamic_cast<nn::WeightProducts*>(rest.get());
  if (products == nullptr) return AutogradSegment::backward_weight(std::move(rest), w);
  const c10::AutoGradMode off(false);
  products->run(w);
}

TensorList Block::backward(Kept& kept, const at::Tensor& dy, const TensorList& w,
                           nn::WeightProducts& products) const {
  TensorList d_inputs(inputs().size());
  if (!dy.defined()) return d_inputs;
  const c10::AutoGradMode off(false);
  const TensorList norms = {w[kAttentionNorm].grad(), w[kFfnNorm].grad()};
  const TensorList partial_norms = {axis_.partial_gradient(norms[0]),
                                    axis_.partial_gradient(norms[1])};
  const auto x_nE = tokens(kept.x_BsE);
  const auto dy_nE = tokens(dy.contiguous());

  // Weight gradients are computed while something else travels.
  // Feed-forward. The buffers of gate and up become their gradients.
  auto gated_NF = at::empty_like(kept.gate_NF);
  auto dy_NE = nn::product_sum_backward_(gated_NF, dy_nE, w[kW2], axis_);
  fused::swiglu_backward_(gated_NF, kept.gate_NF, kept.up_NF);
  auto normed_nE = at::empty_like(x_nE);
  fused::rms_norm_again(kept.h_nE, w[kFfnNorm], kept.rstd2_n, normed_nE);
  auto normed_NE = products.gather(normed_nE);
  products.add(kW2, dy_NE, products.whole(gated_NF));
  gated_NF.reset();
  dy_NE.reset();
  auto dx_nE = nn::gathered_products_backward({kept.gate_NF, kept.up_NF},
                                              {w[kW1], w[kW3]}, axis_);
  products.add(kW1, kept.gate_NF, normed_NE);
  products.add(kW3, kept.up_NF, normed_NE);
  const auto dh_nE = dx_nE.wait();
  fused::rms_norm_backward(dh_nE, 1.0, kept.h_nE, w[kFfnNorm], kept.rstd2_n, dy_nE,
                           dh_nE, partial_norms[1]);
  normed_NE.reset();
  kept.gate_NF.reset();
  kept.up_NF.reset();
  kept.h_nE.reset();

  // Attention.
  const auto& o_BSHD = kept.attention.o;
  auto do_BSHD = at::empty_like(o_BSHD);
  auto dh_NE =
      nn::product_sum_backward_(tokens(do_BSHD.flatten(2)), dh_nE, w[kWo], axis_);
  if (products.are_kept()) normed_nE = at::empty_like(x_nE);
  fused::rms_norm_again(x_nE, w[kAttentionNorm], kept.rstd1_n, normed_nE);
  normed_NE = products.gather(normed_nE);
  products.add(kWo, dh_NE, products.whole(tokens(o_BSHD.flatten(2))));
  dh_NE.reset();
  const auto here = places(kept.x_BsE, kept.document_starts);
  const auto d_in = attention_->backward(kept.attended, here, kept.attention, do_BSHD);
  do_BSHD.reset();
  fused::rope_(d_in.q, rope_, here.own, fused::Turn::kBackward);
  fused::rope_(d_in.k, rope_, here.own, fused::Turn::kBackward);
  const TensorList d_qkv = {tokens(d_in.q.flatten(2)), tokens(d_in.k.flatten(2)),
                            tokens(d_in.v.flatten(2))};
  dx_nE = nn::gathered_products_backward(d_qkv, {w[kWq], w[kWk], w[kWv]}, axis_);
  constexpr BlockSlot kSlots[] = {kWq, kWk, kWv};
  for (size_t i = 0; i < d_qkv.size(); ++i)
    products.add(kSlots[i], d_qkv[i], normed_NE);
  const auto d_nE = dx_nE.wait();
  fused::rms_norm_backward(d_nE, 1.0, x_nE, w[kAttentionNorm], kept.rstd1_n, dh_nE,
                           d_nE, partial_norms[0]);
  axis_.add_sums_(norms, partial_norms);
  d_inputs[0] = d_nE.view_as(kept.x_BsE);
  return d_inputs;
}

}  // namespace torchtitan::models::llama
