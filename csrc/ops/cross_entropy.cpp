#include "ops/cross_entropy.h"

#include <ATen/core/Reduction.h>
#include <ATen/ops/cross_entropy_loss.h>

namespace torchtitan::ops {

at::Tensor cross_entropy_sum(const at::Tensor& logits, const at::Tensor& labels) {
  TORCH_CHECK_VALUE(logits.dim() == labels.dim() + 1 &&
                        logits.sizes().slice(0, labels.dim()) == labels.sizes(),
                    "cross_entropy_sum: logits must be [..., V] for labels [...], got ",
                    logits.sizes(), " and ", labels.sizes());
  const auto dtype = c10::promoteTypes(logits.scalar_type(), at::kFloat);
  return at::cross_entropy_loss(logits.flatten(0, -2).to(dtype), labels.flatten(), {},
                                at::Reduction::Sum, kIgnoreIndex);
}

}  // namespace torchtitan::ops
