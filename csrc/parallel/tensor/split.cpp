#include "parallel/tensor/split.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "base/checked_math.h"

namespace torchtitan::parallel::tensor {
namespace {

bool matches(std::string_view name, std::string_view suffix) {
  return name.ends_with(suffix) &&
         (name.size() == suffix.size() || name[name.size() - suffix.size() - 1] == '.');
}

void divide(nn::ParameterSpec& spec, int64_t dim, const collectives::Group& axis) {
  TORCH_CHECK_VALUE(dim >= 0 && dim < static_cast<int64_t>(spec.shape.size()),
                    "parameter ", spec.name, ": dim ", dim,
                    " cannot be divided, it has ", spec.shape.size());
  const auto d = static_cast<size_t>(dim);
  const int64_t whole = spec.shape[d];
  const int64_t chunk = base::ceil_div(whole, axis.size());
  nn::Piece piece{spec.shape, std::vector<int64_t>(spec.shape.size(), 0)};
  piece.offset[d] = std::min(axis.rank() * chunk, whole);
  spec.shape[d] = std::min(chunk, whole - piece.offset[d]);
  spec.piece = std::move(piece);
}

}  // namespace

void split(std::vector<nn::ParameterGroupSpec>& groups, std::span<const Rule> rules,
           const collectives::Group& axis) {
  if (axis.size() == 1) return;
  for (auto& group : groups) {
    for (auto& spec : group.parameters) {
      const auto rule = std::find_if(
          rules.begin(), rules.end(),
          [&](const Rule& candidate) { return matches(spec.name, candidate.suffix); });
      if (rule == rules.end()) {
        spec.is_first_copy = axis.rank() == 0;
      } else {
        divide(spec, rule->dim, axis);
      }
    }
  }
}

}  // namespace torchtitan::parallel::tensor
