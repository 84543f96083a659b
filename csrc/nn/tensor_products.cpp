#include "nn/tensor_products.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "ops/linear.h"

namespace torchtitan::nn {
namespace {

using ops::Into;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor flat(const at::Tensor& x) { return x.contiguous().flatten(0, 1); }

struct AxisHolder final : torch::CustomClassHolder {
  explicit AxisHolder(TensorAxis axis) : axis(std::move(axis)) {}
  TensorAxis axis;
};

void keep(AutogradContext* ctx, const TensorAxis& axis) {
  ctx->saved_data["axis"] =
      at::IValue::make_capsule(c10::make_intrusive<AxisHolder>(axis));
}

TensorAxis kept_axis(AutogradContext* ctx) {
  return static_cast<AxisHolder*>(ctx->saved_data["axis"].toCapsule().get())->axis;
}

at::Tensor weight_gradient(const at::Tensor& dy, const at::Tensor& x,
                           const at::Tensor& w) {
  const auto dw = at::zeros_like(w);
  ops::linear_backward_weight_(dw, dy, x);
  return dw;
}

class GatheredLinear final : public torch::autograd::Function<GatheredLinear> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x,
                               at::TensorList weights, const TensorAxis& axis) {
    TensorList outputs;
    const int64_t length = x.size(1) * axis.size();
    for (const auto& w : weights) {
      outputs.push_back(at::empty({x.size(0) * length, w.size(0)}, x.options()));
    }
    gathered_products_(outputs, flat(x), weights.vec(), axis);
    variable_list saved = weights.vec();
    saved.push_back(x);
    ctx->save_for_backward(saved);
    keep(ctx, axis);
    for (auto& output : outputs) {
      output = output.view({x.size(0), length, output.size(1)});
    }
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    auto weights = ctx->get_saved_variables();
    const auto x = weights.back();
    weights.pop_back();
    const auto axis = kept_axis(ctx);
    // Asked for one by one where a backward is divided in halves.
    const bool for_weights = ctx->needs_input_grad({{1, 1 + weights.size()}});
    TensorList dys;
    for (const auto& gradient : gradients) dys.push_back(flat(gradient));
    std::optional<Pending> x_NE, dx;
    if (for_weights) x_NE = axis.start_gather(flat(x));
    if (ctx->needs_input_grad(0)) dx = gathered_products_backward(dys, weights, axis);
    variable_list result(weights.size() + 2);
    for (size_t i = 0; for_weights && i < weights.size(); ++i) {
      result[i + 1] = weight_gradient(dys[i], x_NE->wait(), weights[i]);
    }
    if (dx) result[0] = dx->wait().view_as(x);
    return result;
  }
};

class LinearSum final : public torch::autograd::Function<LinearSum> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& w, const TensorAxis& axis) {
    ctx->save_for_backward({x, w});
    keep(ctx, axis);
    return product_sum(flat(x), w, axis).view({x.size(0), -1, w.size(0)});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &w = saved[1];
    const auto axis = kept_axis(ctx);
    at::Tensor dx, dw, dy;
    if (ctx->needs_input_grad(0)) {
      dx = at::empty_like(x, at::MemoryFormat::Contiguous);
      dy = product_sum_backward_(dx.flatten(0, 1), flat(gradients[0]), w, axis);
      // For the other half of a divided backward.
      if (w.requires_grad() && !ctx->needs_input_grad(1)) ctx->saved_data["dy"] = dy;
    } else {
      const auto gathered = ctx->saved_data.find("dy");
      dy = gathered == ctx->saved_data.end() ? axis.gather(flat(gradients[0]))
                                             : gathered->second.toTensor();
    }
    if (ctx->needs_input_grad(1)) dw = weight_gradient(dy, flat(x), w);
    return {dx, dw, at::Tensor()};
  }
};

}  // namespace

at::Tensor gathered_products_(const TensorList& outputs, const at::Tensor& x,
                              const TensorList& weights, const TensorAxis& axis) {
  return axis.gather(x, [&](int64_t first, const at::Tensor& rows) {
    for (size_t i = 0; i < weights.size(); ++i) {
      ops::linear_(outputs[i].narrow(0, first, rows.size(0)), rows, weights[i],
                   Into::kOverwrite);
    }
  });
}

Pending gathered_products_backward(const TensorList& output_gradients,
                                   const TensorList& weights, const TensorAxis& axis) {
  const auto like = at::empty({0, weights[0].size(1)}, output_gradients[0].options());
  return axis.start_sum_scatter(
      output_gradients[0].size(0), like, [&](int64_t first, const at::Tensor& out) {
        for (size_t i = 0; i < weights.size(); ++i) {
          ops::linear_backward_input_(
              out, output_gradients[i].narrow(0, first, out.size(0)), weights[i],
              i == 0 ? Into::kOverwrite : Into::kAdd);
        }
      });
}

at::Tensor product_sum(const at::Tensor& x, const at::Tensor& w,
                       const TensorAxis& axis) {
  const auto like = at::empty({0, w.size(0)}, x.options());
  return axis
      .start_sum_scatter(x.size(0), like,
                         [&](int64_t first, const at::Tensor& out) {
                           ops::linear_(out, x.narrow(0, first, out.size(0)), w,
                                        Into::kOverwrite);
                         })
      .wait();
}

void add_product_sum_(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w,
                      const TensorAxis& axis) {
  if (!axis.is_split()) return ops::linear_(y, x, w, Into::kAdd);
  at::Tensor(y).add_(product_sum(x, w, axis));
}

at::Tensor product_sum_backward_(const at::Tensor& dx, const at::Tensor& dy,
                                 const at::Tensor& w, const TensorAxis& axis) {
  return axis.gather(dy, [&](int64_t first, const at::Tensor& rows) {
    ops::linear_backward_input_(dx.narrow(0, first, rows.size(0)), rows, w,
                                Into::kOverwrite);
  });
}

TensorList gathered_linear(const at::Tensor& x, const TensorList& weights,
                           const TensorAxis& axis) {
  if (axis.is_split()) return GatheredLinear::apply(x, at::TensorList(weights), axis);
  TensorList outputs;
  for (const auto& w : weights) outputs.push_back(at::linear(x, w));
  return outputs;
}

at::Tensor linear_sum(const at::Tensor& x, const at::Tensor& w,
                      const TensorAxis& axis) {
  return axis.is_split() ? LinearSum::apply(x, w, axis) : at::linear(x, w);
}

}  // namespace torchtitan::nn
