#include "nn/initialize.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <span>

#include "base/random_fill.h"

namespace torchtitan::nn {

void fill_initial(const at::Tensor& rows, const ParameterSpec& parameter,
                  int64_t first_row, uint64_t seed) {
  if (rows.is_meta()) return;
  const c10::AutoGradMode off(false);
  const auto& init = parameter.init;
  if (init.kind == Init::Kind::kConstant) {
    rows.fill_(init.mean);
    return;
  }
  const auto numbers = at::empty(rows.sizes(), at::kFloat);
  const std::span<float> out(numbers.mutable_data_ptr<float>(),
                             static_cast<size_t>(numbers.numel()));
  std::vector<int64_t> offset(parameter.shape.size(), 0);
  offset[0] = first_row;
  const base::RandomTensor tensor{seed, parameter.name, parameter.shape};
  const base::RandomBox box{offset, numbers.sizes()};
  if (init.kind == Init::Kind::kNormal) {
    base::fill_normal(out, tensor, box, init.mean, init.std);
  } else {
    base::fill_truncated_normal(out, tensor, box,
                                {init.mean, init.std, init.low, init.high});
  }
  rows.copy_(numbers);
}

}  // namespace torchtitan::nn
