#include "nn/tensor_axis.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <functional>

#include "base/checked_math.h"
#include "ops/linear.h"

namespace torchtitan::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor rows(int64_t count, const at::Tensor& like) {
  auto shape = like.sizes().vec();
  shape[0] = count;
  return at::empty(shape, like.options());
}

// [B, s, E] <-> [N, E]
at::Tensor flat(const at::Tensor& x) { return x.contiguous().flatten(0, 1); }

at::Tensor gathered(const at::Tensor& x, const TensorAxis& axis) {
  return axis.gather(flat(x)).view({x.size(0), -1, x.size(2)});
}

at::Tensor scattered(const at::Tensor& x, const TensorAxis& axis) {
  return axis.sum_scatter(flat(x)).view({x.size(0), -1, x.size(2)});
}

using Map = std::function<at::Tensor(const at::Tensor&)>;

struct Transpose final : torch::CustomClassHolder {
  Map function;
};

// A linear function and its transpose.
class Linear final : public torch::autograd::Function<Linear> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x,
                            const Map& function, const Map& transpose) {
    const auto kept = c10::make_intrusive<Transpose>();
    kept->function = transpose;
    ctx->saved_data["transpose"] = at::IValue::make_capsule(kept);
    return function(x);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto capsule = ctx->saved_data["transpose"].toCapsule();
    const auto& transpose = static_cast<Transpose*>(capsule.get())->function;
    return {transpose(gradients[0]), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor TensorAxis::gather(const at::Tensor& x) const {
  if (!is_split()) return x;
  const auto all = rows(x.size(0) * size(), x);
  group_.all_gather(all, x).wait();
  return all;
}

at::Tensor TensorAxis::sum_scatter(const at::Tensor& partial) const {
  if (!is_split()) return partial;
  TORCH_CHECK_VALUE(partial.size(0) % size() == 0, "sum_scatter: ", partial.size(0),
                    " tokens cannot be divided among ", size(), " ranks");
  const auto own = rows(partial.size(0) / size(), partial);
  group_.reduce_scatter(own, partial).wait();
  return own;
}

void TensorAxis::add_product_(const at::Tensor& y, const at::Tensor& x,
                              const at::Tensor& w) const {
  if (!is_split()) return ops::linear_(y, x, w, ops::Into::kAdd);
  const auto partial = at::empty({x.size(0), w.size(0)}, x.options());
  ops::linear_(partial, x, w, ops::Into::kOverwrite);
  at::Tensor(y).add_(sum_scatter(partial));
}

void TensorAxis::sum_product_(const at::Tensor& y, const at::Tensor& dy,
                              const at::Tensor& w) const {
  if (!is_split()) return ops::linear_backward_input_(y, dy, w, ops::Into::kOverwrite);
  const auto partial = at::empty({dy.size(0), w.size(1)}, y.options());
  ops::linear_backward_input_(partial, dy, w, ops::Into::kOverwrite);
  at::Tensor(y).copy_(sum_scatter(partial));
}

at::Tensor TensorAxis::partial_gradient(const at::Tensor& gradient) const {
  return is_split() ? at::zeros_like(gradient) : gradient;
}

void TensorAxis::add_sums_(const TensorList& gradients,
                           const TensorList& partials) const {
  if (!is_split()) return;
  TensorList pieces;
  for (const auto& partial : partials) pieces.push_back(partial.flatten());
  const auto sums = at::cat(pieces);
  group_.all_reduce(sums).wait();
  int64_t offset = 0;
  for (const auto& gradient : gradients) {
    const auto sum = sums.narrow(0, offset, gradient.numel()).view(gradient.sizes());
    at::Tensor(gradient).add_(sum);
    offset += gradient.numel();
  }
}

void TensorAxis::note(std::vector<plan::Exchange>& exchanges, Verb verb, int64_t numel,
                      const at::TensorOptions& options) const {
  if (!is_split()) return;
  const char* name = verb == Verb::kGather       ? "all_gather"
                     : verb == Verb::kSumScatter ? "reduce_scatter"
                                                 : "all_reduce";
  exchanges.push_back({group_.name(), name, size(),
                       numel * static_cast<int64_t>(options.dtype().itemsize())});
}

at::Tensor gather_tokens(const at::Tensor& x, const TensorAxis& axis) {
  if (!axis.is_split()) return x;
  return Linear::apply(
      x, [axis](const at::Tensor& local) { return gathered(local, axis); },
      [axis](const at::Tensor& gradient) { return scattered(gradient, axis); });
}

at::Tensor sum_scatter_tokens(const at::Tensor& partial, const TensorAxis& axis) {
  if (!axis.is_split()) return partial;
  return Linear::apply(
      partial, [axis](const at::Tensor& whole) { return scattered(whole, axis); },
      [axis](const at::Tensor& gradient) { return gathered(gradient, axis); });
}

at::Tensor shared_by_ranks(const at::Tensor& parameter, const TensorAxis& axis) {
  if (!axis.is_split()) return parameter;
  return Linear::apply(
      parameter, [](const at::Tensor& whole) { return whole.view_as(whole); },
      [axis](const at::Tensor& gradient) {
        const auto sum = gradient.clone(at::MemoryFormat::Contiguous);
        axis.group().all_reduce(sum).wait();
        return sum;
      });
}

at::Tensor gather_columns(const at::Tensor& x, int64_t total, const TensorAxis& axis) {
  if (!axis.is_split()) return x;
  const int64_t chunk = base::ceil_div(total, axis.size());
  const int64_t columns = x.size(-1);
  return Linear::apply(
      x,
      [axis, chunk, total](const at::Tensor& own) {
        // Columns first, so that ranks' parts follow each other; short ones are padded.
        const auto turned =
            at::constant_pad_nd(own.flatten(0, -2).t(), {0, 0, 0, chunk - own.size(-1)})
                .contiguous();
        auto shape = own.sizes().vec();
        shape.back() = total;
        return axis.gather(turned).narrow(0, 0, total).t().contiguous().view(shape);
      },
      [axis, chunk, columns, total](const at::Tensor& gradient) {
        return gradient.narrow(-1, std::min(axis.rank() * chunk, total), columns);
      });
}

}  // namespace torchtitan::nn
