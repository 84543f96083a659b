#include "ops/attention.h"

#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>

namespace torchtitan::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kNothing = -std::numeric_limits<double>::infinity();

// Shapes and saved tensors of the fused kernels that run on real devices: without it,
// torch takes the unfused path on meta, whose [S, S] scores nothing allocates in truth.
class MetaAttention : public torch::autograd::Function<MetaAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q,
                            const at::Tensor& k, const at::Tensor& v) {
    const auto out = at::empty_like(q);
    const auto log_sum_exp =
        at::empty({q.size(0), q.size(2), q.size(1)},
                  q.options().dtype(at::toOpMathType(q.scalar_type())));
    ctx->save_for_backward({q, k, v, out, log_sum_exp});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    return {at::empty_like(gradients[0]), at::empty_like(saved[1]),
            at::empty_like(saved[2])};
  }
};

void check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  TORCH_CHECK_VALUE(
      q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes() &&
          q.size(2) % k.size(2) == 0,
      "attention: q must be [B, S, H, D] and k, v [B, K, G, D] with H divisible by G, "
      "got ",
      q.sizes(), ", ", k.sizes(), ", ", v.sizes());
}

// [B, S, H, D] -> [B, groups, H / groups, S, D], wide. Key heads are groups of one.
at::Tensor by_group(const at::Tensor& x, int64_t groups) {
  return x.to(at::toOpMathType(x.scalar_type()))
      .unflatten(2, {groups, -1})
      .permute({0, 2, 3, 1, 4});
}

// and back.
at::Tensor by_token(const at::Tensor& x) {
  return x.permute({0, 3, 1, 2, 4}).flatten(2, 3);
}

at::Tensor scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& visible) {
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(-1)));
  return at::matmul(q.mul(scale), k.transpose(-1, -2))
      .masked_fill(visible.unsqueeze(2).logical_not(), kNothing);
}

// exp(x - lse), where lse of no scores counts as 0.
at::Tensor softened(const at::Tensor& x, const at::Tensor& lse) {
  return at::exp(x.sub(lse.masked_fill(lse.eq(kNothing), 0.0)));
}

}  // namespace

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& visible) {
  check(q, k, v);
  if (q.is_meta()) return MetaAttention::apply(q, k, v);
  const auto mask =
      visible.defined() ? std::optional<at::Tensor>(visible) : std::nullopt;
  return at::scaled_dot_product_attention(
             q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, 0.0,
             /*is_causal=*/!visible.defined(), std::nullopt,
             /*enable_gqa=*/q.size(2) != k.size(2))
      .transpose(1, 2);
}

at::Tensor visible_keys(const at::Tensor& query_positions,
                        const at::Tensor& key_positions,
                        const at::Tensor& document_starts) {
  const auto query = query_positions.view({1, 1, -1, 1});
  const auto key = key_positions.view({1, 1, 1, -1});
  const auto visible = key.le(query);
  if (!document_starts.defined()) return visible;
  const auto first = document_starts.index_select(1, query_positions);
  return visible.logical_and(first.unsqueeze(1).unsqueeze(-1).le(key));
}

AttentionPart attention_part(const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const at::Tensor& visible) {
  check(q, k, v);
  const int64_t groups = k.size(2);
  const auto raw = scores(by_group(q, groups), by_group(k, groups), visible);
  const auto lse = at::logsumexp(raw, -1, /*keepdim=*/true);
  const auto o = at::matmul(softened(raw, lse), by_group(v, groups));
  return {by_token(o).contiguous(), lse.squeeze(-1).flatten(1, 2)};
}

AttentionPart merge(const AttentionPart& one, const AttentionPart& other) {
  const auto lse = at::logaddexp(one.lse, other.lse);
  const auto scaled = [&](const AttentionPart& part) {
    return part.o.mul(softened(part.lse, lse).transpose(1, 2).unsqueeze(-1));
  };
  return {scaled(one).add(scaled(other)), lse};
}

AttentionPartGradient attention_part_backward(const at::Tensor& q, const at::Tensor& k,
                                              const at::Tensor& v,
                                              const at::Tensor& visible,
                                              const at::Tensor& lse,
                                              const at::Tensor& delta,
                                              const at::Tensor& d_o) {
  check(q, k, v);
  const int64_t groups = k.size(2);
  const auto per_row = [&](const at::Tensor& x) {
    return x.unflatten(1, {groups, -1}).unsqueeze(-1);
  };
  const auto query = by_group(q, groups), key = by_group(k, groups),
             value = by_group(v, groups), d_out = by_group(d_o, groups);
  const auto p = softened(scores(query, key, visible), per_row(lse));
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
  const auto d_scores =
      at::matmul(d_out, value.transpose(-1, -2)).sub(per_row(delta)).mul(p).mul(scale);
  const auto of_keys = [](const at::Tensor& x, const at::Tensor& rows) {
    return by_token(at::matmul(x.transpose(-1, -2), rows).sum(2, /*keepdim=*/true));
  };
  return {by_token(at::matmul(d_scores, key)), of_keys(d_scores, query),
          of_keys(p, d_out)};
}

}  // namespace torchtitan::ops
