#include "ops/rms_norm.h"

#include <ATen/ops/rms_norm.h>

namespace torchtitan::ops {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  TORCH_CHECK_VALUE(weight.dim() == 1 && x.dim() >= 1 && x.size(-1) == weight.size(0),
                    "rms_norm: weight must be [D] for x [..., D], but x has shape ",
                    x.sizes(), " and weight ", weight.sizes());
  return at::rms_norm(x, {weight.size(0)}, weight, eps);
}

}  // namespace torchtitan::ops
