#include "ops/attention.h"

#include <ATen/ops/scaled_dot_product_attention.h>

namespace torchtitan::ops {

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v) {
  TORCH_CHECK_VALUE(
      q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes() &&
          q.size(2) % k.size(2) == 0,
      "causal_attention: q must be [B, S, H, D] and k, v [B, S, G, D] with "
      "H divisible by G, got ",
      q.sizes(), ", ", k.sizes(), ", ", v.sizes());
  return at::scaled_dot_product_attention(
             q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), {}, 0.0,
             /*is_causal=*/true, std::nullopt, /*enable_gqa=*/q.size(2) != k.size(2))
      .transpose(1, 2);
}

}  // namespace torchtitan::ops
