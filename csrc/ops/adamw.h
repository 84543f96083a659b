// One Adam or AdamW update of a flat buffer (Kingma and Ba 2015; Loshchilov and Hutter
// 2019), with gradient clipping and the finite check folded in: one pass over memory.
//
//   parameter   [N] float32, float64 or bfloat16, changed in place
//   gradient    [N] float32 or float64
//   exp_avg     [N] float32, float64 or bfloat16, changed in place
//   exp_avg_sq  [N] like exp_avg
// Arithmetic is float32, or float64 where the parameter is float64. Nothing changes
// where scalars.finite is 0: the decision is read on the device, never by the host.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchtitan::ops {

struct AdamOptions {
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  bool decoupled;  // true: AdamW, decay of the parameter; false: Adam, L2 in the
                   // gradient
};

// 0-dim float64 tensors on the parameter's device.
struct AdamScalars {
  at::Tensor learning_rate;
  at::Tensor step;    // 1 in the first update
  at::Tensor clip;    // factor of the gradient
  at::Tensor finite;  // 0: leave everything as it is
};

void adamw_(const at::Tensor& parameter, const at::Tensor& gradient,
            const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
            const AdamOptions& options, const AdamScalars& scalars);

// The same by plain tensor operations, one after another: the definition.
void adamw_reference_(const at::Tensor& parameter, const at::Tensor& gradient,
                      const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                      const AdamOptions& options, const AdamScalars& scalars);

}  // namespace torchtitan::ops
