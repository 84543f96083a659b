#include "models/llama/block.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "ops/attention.h"
#include "ops/fused.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

// Shape letters: B batch, S sequence, N = B S tokens, E dim, H query heads, G kv heads,
// D head dim, F hidden dim.
namespace torchtitan::models::llama {
namespace {

using nn::TensorList;
using ops::Into;
namespace fused = ops::fused;

// What backward needs; the normed inputs and the gated product are computed again.
struct Kept final : nn::Segment::Saved {
  at::Tensor x_BSE, rstd1_N;
  at::Tensor q_BSHD, k_BSGD, v_BSGD;  // rotated
  at::Tensor o_BSHD, lse_BHS;
  at::Tensor h_NE, rstd2_N;
  at::Tensor gate_NF, up_NF;
};

at::Tensor tokens(const at::Tensor& x) { return x.view({x.size(0) * x.size(1), -1}); }

at::Tensor rows_like(const at::Tensor& x, int64_t columns) {
  return at::empty({x.size(0), columns}, x.options());
}

at::Tensor project(const at::Tensor& x, const at::Tensor& w) {
  const auto y = rows_like(x, w.size(0));
  ops::linear_(y, x, w, Into::kOverwrite);
  return y;
}

}  // namespace

Block::Block(std::string name, std::vector<nn::ParameterRef> parameters,
             const Args& args, ops::RopeTable rope)
    : AutogradSegment(std::move(name), {"h"}, {"h"}, std::move(parameters)),
      args_(args), rope_(std::move(rope)) {}

at::Tensor Block::heads(const at::Tensor& x) const {
  return x.unflatten(-1, {-1, args_.head_dim()});
}

TensorList Block::compute(const TensorList& inputs, const TensorList& w) const {
  const auto& x_BSE = inputs[0];
  const auto a_BSE = ops::rms_norm(x_BSE, w[kAttentionNorm], args_.norm_eps);
  const auto q_BSHD = ops::apply_rope(heads(at::linear(a_BSE, w[kWq])), rope_);
  const auto k_BSGD = ops::apply_rope(heads(at::linear(a_BSE, w[kWk])), rope_);
  const auto v_BSGD = heads(at::linear(a_BSE, w[kWv]));
  const auto o_BSE = ops::causal_attention(q_BSHD, k_BSGD, v_BSGD).flatten(2);
  const auto h_BSE = x_BSE.add(at::linear(o_BSE, w[kWo]));

  const auto f_BSE = ops::rms_norm(h_BSE, w[kFfnNorm], args_.norm_eps);
  const auto g_BSF = ops::swiglu(at::linear(f_BSE, w[kW1]), at::linear(f_BSE, w[kW3]));
  return {h_BSE.add(at::linear(g_BSF, w[kW2]))};
}

nn::Flops Block::flops(const TensorList& inputs, const TensorList& w) const {
  int64_t weights = 0;
  for (const BlockSlot slot : {kWq, kWk, kWv, kWo, kW1, kW2, kW3}) {
    weights += w[slot].numel();
  }
  const int64_t length = inputs[0].size(1);
  const int64_t of_token = 2 * weights + 4 * args_.n_heads * args_.head_dim() * length;
  const int64_t forward = inputs[0].size(0) * length * of_token;
  return {.forward = forward, .backward = 2 * forward};
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

TensorList Block::forward(const TensorList& inputs, const TensorList& w,
                          std::unique_ptr<Saved>* saved) {
  if (!is_hand_written(inputs[0], w)) return AutogradSegment::forward(inputs, w, saved);
  const c10::AutoGradMode off(false);
  const auto x_BSE = inputs[0].contiguous();
  const auto x_NE = tokens(x_BSE);
  const int64_t batch = x_BSE.size(0), length = x_BSE.size(1);
  const auto per_head = [&](const at::Tensor& x) {
    return x.view({batch, length, -1, args_.head_dim()});
  };

  const auto normed_NE = at::empty_like(x_NE);
  const auto rstd1_N = at::empty({x_NE.size(0)}, fused::wide_options(x_NE));
  fused::rms_norm(x_NE, {}, w[kAttentionNorm], args_.norm_eps, normed_NE, rstd1_N);
  const auto q_BSHD = per_head(project(normed_NE, w[kWq]));
  const auto k_BSGD = per_head(project(normed_NE, w[kWk]));
  const auto v_BSGD = per_head(project(normed_NE, w[kWv]));
  fused::rope_(q_BSHD, rope_, fused::Turn::kForward);
  fused::rope_(k_BSGD, rope_, fused::Turn::kForward);
  const auto o_BSHD = at::empty_like(q_BSHD);
  const auto lse_BHS =
      at::empty({batch, args_.n_heads, length}, fused::wide_options(x_NE));
  fused::causal_attention(q_BSHD, k_BSGD, v_BSGD, o_BSHD, lse_BHS);

  const auto h_NE = project(tokens(o_BSHD.flatten(2)), w[kWo]);
  const auto rstd2_N = at::empty_like(rstd1_N);
  // Adds the residual to h on the way.
  fused::rms_norm(h_NE, x_NE, w[kFfnNorm], args_.norm_eps, normed_NE, rstd2_N);
  const auto gate_NF = project(normed_NE, w[kW1]);
  const auto up_NF = project(normed_NE, w[kW3]);
  // Where nothing is kept the product may take the gate's place.
  const auto gated_NF = saved == nullptr ? gate_NF : at::empty_like(gate_NF);
  fused::swiglu(gate_NF, up_NF, gated_NF);
  const auto y_NE = normed_NE.copy_(h_NE);
  ops::linear_(y_NE, gated_NF, w[kW2], Into::kAdd);

  if (saved != nullptr) {
    auto kept = std::make_unique<Kept>();
    kept->x_BSE = x_BSE;
    kept->rstd1_N = rstd1_N;
    kept->q_BSHD = q_BSHD;
    kept->k_BSGD = k_BSGD;
    kept->v_BSGD = v_BSGD;
    kept->o_BSHD = o_BSHD;
    kept->lse_BHS = lse_BHS;
    kept->h_NE = h_NE;
    kept->rstd2_N = rstd2_N;
    kept->gate_NF = gate_NF;
    kept->up_NF = up_NF;
    *saved = std::move(kept);
  }
  return {y_NE.view_as(x_BSE)};
}

TensorList Block::backward(std::unique_ptr<Saved> saved,
                           const TensorList& output_gradients, const TensorList& w) {
  auto* kept = dynamic_cast<Kept*>(saved.get());
  if (kept == nullptr) {
    return AutogradSegment::backward(std::move(saved), output_gradients, w);
  }
  if (!output_gradients[0].defined()) return {at::Tensor()};
  const c10::AutoGradMode off(false);
  const auto gradient = [&](BlockSlot slot) { return w[slot].grad(); };
  const auto x_NE = tokens(kept->x_BSE);
  const auto dy_NE = tokens(output_gradients[0].contiguous());

  // Feed-forward. The buffers of gate and up become their gradients.
  auto gated_NF = at::empty_like(kept->gate_NF);
  ops::linear_backward_input_(gated_NF, dy_NE, w[kW2], Into::kOverwrite);
  fused::swiglu_backward_(gated_NF, kept->gate_NF, kept->up_NF);
  ops::linear_backward_weight_(gradient(kW2), dy_NE, gated_NF);
  gated_NF.reset();
  const auto normed_NE = at::empty_like(x_NE);
  fused::rms_norm_again(kept->h_NE, w[kFfnNorm], kept->rstd2_N, normed_NE);
  ops::linear_backward_weight_(gradient(kW1), kept->gate_NF, normed_NE);
  ops::linear_backward_weight_(gradient(kW3), kept->up_NF, normed_NE);
  const auto dh_NE = at::empty_like(x_NE);
  ops::linear_backward_input_(dh_NE, kept->gate_NF, w[kW1], Into::kOverwrite);
  ops::linear_backward_input_(dh_NE, kept->up_NF, w[kW3], Into::kAdd);
  fused::rms_norm_backward(dh_NE, 1.0, kept->h_NE, w[kFfnNorm], kept->rstd2_N, dy_NE,
                           dh_NE, gradient(kFfnNorm));
  kept->gate_NF.reset();
  kept->up_NF.reset();
  kept->h_NE.reset();

  // Attention. The gradients take the places of do, k and v.
  ops::linear_backward_weight_(gradient(kWo), dh_NE, tokens(kept->o_BSHD.flatten(2)));
  const auto do_BSHD = at::empty_like(kept->q_BSHD);
  ops::linear_backward_input_(tokens(do_BSHD.flatten(2)), dh_NE, w[kWo],
                              Into::kOverwrite);
  fused::causal_attention_backward(kept->q_BSHD, kept->k_BSGD, kept->v_BSGD,
                                   kept->o_BSHD, kept->lse_BHS, do_BSHD, do_BSHD,
                                   kept->k_BSGD, kept->v_BSGD);
  fused::rope_(do_BSHD, rope_, fused::Turn::kBackward);
  fused::rope_(kept->k_BSGD, rope_, fused::Turn::kBackward);
  fused::rms_norm_again(x_NE, w[kAttentionNorm], kept->rstd1_N, normed_NE);
  const std::pair<BlockSlot, at::Tensor> projections[] = {
      {kWq, tokens(do_BSHD.flatten(2))},
      {kWk, tokens(kept->k_BSGD.flatten(2))},
      {kWv, tokens(kept->v_BSGD.flatten(2))}};
  for (const auto& [slot, d] : projections) {
    ops::linear_backward_weight_(gradient(slot), d, normed_NE);
  }
  for (const auto& [slot, d] : projections) {
    ops::linear_backward_input_(normed_NE, d, w[slot],
                                slot == kWq ? Into::kOverwrite : Into::kAdd);
  }
  fused::rms_norm_backward(normed_NE, 1.0, x_NE, w[kAttentionNorm], kept->rstd1_N,
                           dh_NE, normed_NE, gradient(kAttentionNorm));
  return {normed_NE.view_as(kept->x_BSE)};
}

}  // namespace torchtitan::models::llama
