#include "mesh/mesh.h"

#include "base/errors.h"

namespace torchtitan::mesh {

Mesh::Mesh(const ParallelDims& dims) : dims_(resolve(dims)) {
  const auto& [dp_replicate, dp_shard, cp, tp, pp, ep, etp, world_size] = dims_;
  const int64_t fsdp = dp_shard * cp;
  const int64_t expert_tensor = ep == 1 ? tp : etp;
  axes_ = {
      {"world", world_size, 1},
      {"pp", pp, dp_replicate * fsdp * tp},
      {"dp_replicate", dp_replicate, fsdp * tp},
      {"dp_shard", dp_shard, cp * tp},
      {"cp", cp, tp},
      {"tp", tp, 1},
      {"batch", dp_replicate * dp_shard, cp * tp},
      {"fsdp", fsdp, tp},
      {"loss", dp_replicate * fsdp, tp},
      {"efsdp", fsdp * tp / (ep * expert_tensor), ep * expert_tensor},
      {"ep", ep, expert_tensor},
      {"etp", expert_tensor, 1},
  };
}

std::vector<std::string> Mesh::axes() const {
  std::vector<std::string> names;
  for (const Axis& axis : axes_) names.push_back(axis.name);
  return names;
}

int64_t Mesh::size(std::string_view axis) const { return find(axis).size; }

int64_t Mesh::coordinate(int64_t rank, std::string_view axis) const {
  check_rank(rank);
  const Axis& found = find(axis);
  return rank / found.stride % found.size;
}

Coordinates Mesh::coordinates(int64_t rank) const {
  check_rank(rank);
  Coordinates position;
  for (const Axis& axis : axes_) position[axis.name] = rank / axis.stride % axis.size;
  return position;
}

std::vector<int64_t> Mesh::ranks(std::string_view axis, int64_t rank) const {
  const Axis& found = find(axis);
  const int64_t first = rank - coordinate(rank, axis) * found.stride;
  std::vector<int64_t> members;
  for (int64_t i = 0; i < found.size; ++i) members.push_back(first + i * found.stride);
  return members;
}

const Mesh::Axis& Mesh::find(std::string_view axis) const {
  for (const Axis& candidate : axes_) {
    if (candidate.name == axis) return candidate;
  }
  std::string known;
  for (const Axis& candidate : axes_) known += " " + candidate.name;
  throw std::invalid_argument(
      base::message("mesh: there is no axis '", axis, "'; the axes are", known));
}

void Mesh::check_rank(int64_t rank) const {
  base::check_value(rank >= 0 && rank < dims_.world_size, "mesh: rank ", rank,
                    " is outside the world of ", dims_.world_size, " ranks");
}

}  // namespace torchtitan::mesh
