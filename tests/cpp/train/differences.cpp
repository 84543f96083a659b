#include "train/differences.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

namespace torchtitan::train::testing {
namespace {

// In the 2-norm; absolute where the reference is 0.
double relative_error(const at::Tensor& value, const at::Tensor& reference) {
  const double norm = reference.norm().item<double>();
  const double error = value.sub(reference).norm().item<double>();
  return norm > 0 ? error / norm : error;
}

double relative_error(double value, double reference) {
  const double error = std::abs(value - reference);
  return error == 0 ? 0 : error / std::abs(reference);
}

// A NaN is a difference.
std::string first_difference(const NamedTensors& values, const NamedTensors& references,
                             double tolerance) {
  if (values.size() != references.size()) return "the number of tensors";
  for (const auto& [name, reference] : references) {
    const bool is_zero = reference.norm().item<double>() == 0;
    const double error = relative_error(values.at(name), reference);
    if (!(error <= (is_zero ? 1e-12 : tolerance))) return name;
  }
  return "";
}

}  // namespace

std::string difference(const Result& result, const Result& reference) {
  if (!(relative_error(result.loss, reference.loss) <= 1e-10)) return "loss";
  if (!(relative_error(result.grad_norm, reference.grad_norm) <= 1e-10)) {
    return "gradient norm";
  }
  const auto gradient = first_difference(result.gradients, reference.gradients, 1e-10);
  if (!gradient.empty()) return "gradient of " + gradient;
  const auto weight = first_difference(result.weights, reference.weights, 1e-9);
  if (!weight.empty()) return "weight " + weight;
  return result.replicas_equal ? "" : "replicas";
}

RelativeErrors relative_errors(const Result& result, const Result& reference) {
  RelativeErrors errors{
      .loss = relative_error(result.loss, reference.loss),
      .grad_norm = relative_error(result.grad_norm, reference.grad_norm)};
  for (const auto& [name, gradient] : reference.gradients) {
    errors.gradient =
        std::max(errors.gradient, relative_error(result.gradients.at(name), gradient));
  }
  return errors;
}

}  // namespace torchtitan::train::testing
