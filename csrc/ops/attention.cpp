#include "ops/attention.h"

#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/custom_function.h>

namespace torchtitan::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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

}  // namespace

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v) {
  TORCH_CHECK_VALUE(
      q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes() &&
          q.size(2) % k.size(2) == 0,
      "causal_attention: q must be [B, S, H, D] and k, v [B, S, G, D] with "
      "H divisible by G, got ",
      q.sizes(), ", ", k.sizes(), ", ", v.sizes());
  if (q.is_meta()) return MetaAttention::apply(q, k, v);
  return at::scaled_dot_product_attention(
             q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), {}, 0.0,
             /*is_causal=*/true, std::nullopt, /*enable_gqa=*/q.size(2) != k.size(2))
      .transpose(1, 2);
}

}  // namespace torchtitan::ops
