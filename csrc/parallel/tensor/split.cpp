#include "parallel/tensor/split.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>

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

// `find` gives the dim that is divided, or nothing.
template <class Find>
void split_each(std::vector<nn::ParameterGroupSpec>& groups,
                const collectives::Group& axis, const Find& find) {
  if (axis.size() == 1) return;
  for (auto& group : groups) {
    for (auto& spec : group.parameters) {
      if (const std::optional<int64_t> dim = find(spec.name)) {
        divide(spec, *dim, axis);
      } else {
        spec.is_first_copy = axis.rank() == 0;
      }
    }
  }
}

}  // namespace

void split(std::vector<nn::ParameterGroupSpec>& groups, std::span<const Rule> rules,
           const collectives::Group& axis) {
  split_each(groups, axis, [&](const std::string& name) -> std::optional<int64_t> {
    for (const auto& rule : rules) {
      if (matches(name, rule.suffix)) return rule.dim;
    }
    return std::nullopt;
  });
}

void split(std::vector<nn::ParameterGroupSpec>& groups,
           const std::map<std::string, int64_t>& dims, const collectives::Group& axis) {
  split_each(groups, axis, [&](const std::string& name) -> std::optional<int64_t> {
    const auto found = dims.find(name);
    if (found == dims.end()) return std::nullopt;
    return found->second;
  });
}

}  // namespace torchtitan::parallel::tensor
