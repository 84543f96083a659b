#include "ops/swiglu.h"

#include <ATen/ops/mul.h>
#include <ATen/ops/silu.h>

namespace torchtitan::ops {

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  TORCH_CHECK_VALUE(gate.sizes() == up.sizes(), "swiglu: shapes differ: ", gate.sizes(),
                    " and ", up.sizes());
  return at::mul(at::silu(gate), up);
}

}  // namespace torchtitan::ops
