#include "parallel/activation_checkpoint/per_operation.h"

#include <algorithm>
#include <set>

#include "base/errors.h"

namespace torchtitan::parallel::activation_checkpoint {
namespace {

using Shape = std::vector<int64_t>;

const nn::ParameterSpec& spec_of(const nn::Model& model, const nn::Segment& segment,
                                 size_t slot) {
  const auto& reference = segment.parameters().at(slot);
  return model.groups.at(static_cast<size_t>(reference.group))
      .parameters.at(static_cast<size_t>(reference.slot));
}

// The modules on the way to a parameter, the one that holds it last:
// "layers.0.attention", "layers.0.attention.wq".
std::vector<std::string> modules_of(const std::string& parameter,
                                    const std::string& segment) {
  std::vector<std::string> modules;
  for (size_t end = segment.size(); end != std::string::npos;
       end = parameter.find('.', end + 1)) {
    if (parameter.compare(0, segment.size(), segment) != 0) return {};
    modules.push_back(parameter.substr(0, end));
  }
  return modules;
}

std::set<Shape> matching_shapes(const nn::Model& model, const nn::Segment& segment,
                                const std::vector<std::string>& names) {
  const auto matches = [&](const std::string& module) {
    return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return module.find(name) != std::string::npos;
    });
  };
  std::set<Shape> shapes;
  for (size_t slot = 0; slot < segment.parameters().size(); ++slot) {
    const auto& spec = spec_of(model, segment, slot);
    const auto modules = modules_of(spec.name, segment.name());
    for (size_t i = 0; i < modules.size(); ++i) {
      if (!matches(modules[i])) continue;
      base::check_value(
          i + 1 == modules.size() && spec.shape.size() == 2,
          "activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns: expected "
          "parts of names of linear modules, found one in '",
          modules[i], "', which is none");
      shapes.insert(spec.whole_shape());
    }
  }
  return shapes;
}

}  // namespace

std::vector<bool> keep_per_operation(
    const nn::Model& model, const nn::Segment& segment,
    const std::vector<nn::Operation>& operations,
    const std::vector<std::string>& recomputed_modules) {
  const auto recomputed = matching_shapes(model, segment, recomputed_modules);
  std::vector<bool> kept;
  bool is_odd = false;
  for (const auto& operation : operations) {
    bool keep = operation.kind == nn::Operation::Kind::kAttention;
    if (operation.weight &&
        !recomputed.contains(
            spec_of(model, segment, *operation.weight).whole_shape())) {
      is_odd = !is_odd;
      keep = is_odd;
    }
    kept.push_back(keep || operation.is_summed_over_ranks);
  }
  return kept;
}

}  // namespace torchtitan::parallel::activation_checkpoint
