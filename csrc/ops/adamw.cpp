#include "ops/adamw.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>

#include <cmath>

namespace torchtitan::ops {
namespace {

constexpr int64_t kGrain = 1 << 15;

template <class Math>
struct Constants {
  Math beta1, beta2, eps, decay, l2, clip, step_size, inverse_root;
};

template <class Math>
Constants<Math> constants(const AdamOptions& options, const AdamScalars& scalars) {
  const double lr = scalars.learning_rate.item<double>();
  const double step = scalars.step.item<double>();
  const double correction1 = 1.0 - std::pow(options.beta1, step);
  const double correction2 = 1.0 - std::pow(options.beta2, step);
  return {static_cast<Math>(options.beta1),
          static_cast<Math>(options.beta2),
          static_cast<Math>(options.eps),
          static_cast<Math>(options.decoupled ? 1.0 - lr * options.weight_decay : 1.0),
          static_cast<Math>(options.decoupled ? 0.0 : options.weight_decay),
          static_cast<Math>(scalars.clip.item<double>()),
          static_cast<Math>(lr / correction1),
          static_cast<Math>(1.0 / std::sqrt(correction2))};
}

template <class Math, class Param, class Grad, class State>
void update(Param* parameter, const Grad* gradient, State* exp_avg, State* exp_avg_sq,
            int64_t begin, int64_t end, const Constants<Math>& c) {
  for (int64_t i = begin; i < end; ++i) {
    Math p = static_cast<Math>(parameter[i]);
    const Math g = static_cast<Math>(gradient[i]) * c.clip + c.l2 * p;
    const Math m = static_cast<Math>(exp_avg[i]) * c.beta1 + (Math(1) - c.beta1) * g;
    const Math v =
        static_cast<Math>(exp_avg_sq[i]) * c.beta2 + (Math(1) - c.beta2) * g * g;
    p = p * c.decay - c.step_size * m / (std::sqrt(v) * c.inverse_root + c.eps);
    parameter[i] = static_cast<Param>(p);
    exp_avg[i] = static_cast<State>(m);
    exp_avg_sq[i] = static_cast<State>(v);
  }
}

void check(const at::Tensor& parameter, const at::Tensor& gradient,
           const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq) {
  TORCH_CHECK_VALUE(
      parameter.numel() == gradient.numel() && parameter.numel() == exp_avg.numel() &&
          parameter.numel() == exp_avg_sq.numel(),
      "adamw_: sizes differ: parameter ", parameter.sizes(), ", gradient ",
      gradient.sizes(), ", state ", exp_avg.sizes(), " and ", exp_avg_sq.sizes());
  TORCH_CHECK_VALUE(parameter.is_contiguous() && gradient.is_contiguous() &&
                        exp_avg.is_contiguous() && exp_avg_sq.is_contiguous(),
                    "adamw_: tensors must be contiguous");
  TORCH_CHECK_VALUE(exp_avg.scalar_type() == exp_avg_sq.scalar_type(),
                    "adamw_: exp_avg is ", exp_avg.scalar_type(), " and exp_avg_sq ",
                    exp_avg_sq.scalar_type());
}

}  // namespace

void adamw_(const at::Tensor& parameter, const at::Tensor& gradient,
            const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
            const AdamOptions& options, const AdamScalars& scalars) {
  check(parameter, gradient, exp_avg, exp_avg_sq);
  if (parameter.is_meta()) return;
  if (!parameter.device().is_cpu()) {
    adamw_reference_(parameter, gradient, exp_avg, exp_avg_sq, options, scalars);
    return;
  }
  if (scalars.finite.item<double>() == 0.0) return;
  const auto dispatch = [&]<class Param, class Grad, class State>(
                            Param* p, const Grad* g, State* m) {
    using Math = std::conditional_t<std::is_same_v<Param, double>, double, float>;
    const auto c = constants<Math>(options, scalars);
    State* v = exp_avg_sq.mutable_data_ptr<State>();
    at::parallel_for(0, parameter.numel(), kGrain, [&](int64_t begin, int64_t end) {
      update<Math>(p, g, m, v, begin, end, c);
    });
  };
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, parameter.scalar_type(), "adamw_", [&] {
    auto* p = parameter.mutable_data_ptr<scalar_t>();
    AT_DISPATCH_FLOATING_TYPES(gradient.scalar_type(), "adamw_ gradient", [&] {
      const auto* g = gradient.const_data_ptr<scalar_t>();
      AT_DISPATCH_FLOATING_TYPES_AND(
          at::kBFloat16, exp_avg.scalar_type(), "adamw_ state",
          [&] { dispatch(p, g, exp_avg.mutable_data_ptr<scalar_t>()); });
    });
  });
}

void adamw_reference_(const at::Tensor& parameter, const at::Tensor& gradient,
                      const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                      const AdamOptions& options, const AdamScalars& scalars) {
  check(parameter, gradient, exp_avg, exp_avg_sq);
  const auto math = parameter.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto lr = scalars.learning_rate;
  const auto correction1 = at::pow(options.beta1, scalars.step).neg().add(1.0);
  const auto correction2 = at::pow(options.beta2, scalars.step).neg().add(1.0);
  auto p = parameter.to(math);
  auto g = gradient.to(math).mul(scalars.clip.to(math));
  if (!options.decoupled) g = g.add(p, options.weight_decay);
  const auto m = exp_avg.to(math).mul(options.beta1).add(g, 1 - options.beta1);
  const auto v =
      exp_avg_sq.to(math).mul(options.beta2).add(g.mul(g), 1 - options.beta2);
  if (options.decoupled) p = p.mul(lr.mul(-options.weight_decay).add(1.0).to(math));
  const auto denominator = v.sqrt().div(correction2.sqrt().to(math)).add(options.eps);
  p = p.sub(m.div(denominator).mul(lr.div(correction1).to(math)));
  const auto keep = scalars.finite.eq(0);
  parameter.copy_(at::where(keep, parameter, p.to(parameter.scalar_type())));
  exp_avg.copy_(at::where(keep, exp_avg, m.to(exp_avg.scalar_type())));
  exp_avg_sq.copy_(at::where(keep, exp_avg_sq, v.to(exp_avg_sq.scalar_type())));
}

}  // namespace torchtitan::ops
