#include "nn/initialize.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <span>

#include "base/random_fill.h"

namespace torchtitan::nn {

void fill_initial(const at::Tensor& box, const ParameterSpec& parameter,
                  at::IntArrayRef offset, uint64_t seed) {
  if (box.is_meta()) return;
  const c10::AutoGradMode off(false);
  const auto& init = parameter.init;
  if (init.kind == Init::Kind::kConstant) {
    box.fill_(init.mean);
    return;
  }
  const auto numbers = at::empty(box.sizes(), at::kFloat);
  const std::span<float> out(numbers.mutable_data_ptr<float>(),
                             static_cast<size_t>(numbers.numel()));
  const base::RandomTensor tensor{seed, parameter.name, parameter.whole_shape()};
  const base::RandomBox where{offset, numbers.sizes()};
  if (init.kind == Init::Kind::kNormal) {
    base::fill_normal(out, tensor, where, init.mean, init.std);
  } else {
    base::fill_truncated_normal(out, tensor, where,
                                {init.mean, init.std, init.low, init.high});
  }
  box.copy_(numbers);
}

}  // namespace torchtitan::nn
