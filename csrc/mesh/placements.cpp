#include "mesh/placements.h"

#include <algorithm>

#include "base/errors.h"

namespace torchtitan::mesh {
namespace {

using base::check_value;
using base::message;

ptrdiff_t position_of(std::span<const MeshAxis> axes, std::string_view axis,
                      int64_t size) {
  const auto found = std::find_if(axes.begin(), axes.end(),
                                  [&](const MeshAxis& a) { return a.axis == axis; });
  check_value(found != axes.end(), "placements: the layout uses axis '", axis,
              "', which the device mesh lacks");
  check_value(found->size == size, "placements: axis '", axis, "' has size ",
              found->size, " in the device mesh and ", size, " in the layout");
  return found - axes.begin();
}

bool has_chunk_boundaries(const Layout& layout, size_t index) {
  const Split& split = layout.splits()[index];
  if (split.boundaries.empty()) return true;
  const Layout chunked({split.boundaries.back()}, {{split.axis, split.parts, 0}});
  for (int64_t part = 0; part < split.parts; ++part) {
    const Box box = chunked.box({{split.axis, part}});
    if (box.size[0] != split.boundaries[part + 1] - split.boundaries[part])
      return false;
  }
  return true;
}

// DTensor cuts every piece of the later axes at once and hands out the joined parts by
// torch.chunk again; that is our order of splits only for pieces of one size.
void check_equal_pieces(const Layout& layout, size_t index) {
  const Split& split = layout.splits()[index];
  int64_t pieces = 1;
  for (size_t earlier = 0; earlier < index; ++earlier) {
    const Split& other = layout.splits()[earlier];
    if (other.dim == split.dim) pieces *= other.parts;
  }
  const int64_t extent = layout.global_shape()[split.dim];
  check_value(extent % pieces == 0, "placements: DTensor cannot split over '",
              split.axis, "' what ", pieces, " parts of dim ", split.dim, " of size ",
              extent, " make, for they are not equal");
}

}  // namespace

std::string to_string(const Placement& placement) {
  switch (placement.kind) {
    case PlacementKind::kReplicate: return "Replicate()";
    case PlacementKind::kShard: return message("Shard(", placement.dim, ")");
    case PlacementKind::kStridedShard:
      return message("_StridedShard(", placement.dim, ", ", placement.split_factor,
                     ")");
  }
  throw std::logic_error("to_string: not a PlacementKind");
}

std::vector<Placement> to_placements(const Layout& layout,
                                     std::span<const MeshAxis> axes) {
  std::vector<Placement> placements(axes.size(), {PlacementKind::kReplicate});
  for (const auto& [axis, size] : layout.replications()) position_of(axes, axis, size);
  const std::vector<Split>& splits = layout.splits();
  for (size_t i = 0; i < splits.size(); ++i) {
    const Split& split = splits[i];
    check_value(split.repeat == 1, "placements: DTensor cannot repeat parts, as the ",
                "split over '", split.axis, "' does");
    check_value(has_chunk_boundaries(layout, i), "placements: DTensor cuts by ",
                "torch.chunk, the split over '", split.axis, "' has other boundaries");
    const ptrdiff_t position = position_of(axes, split.axis, split.parts);
    Placement placement{PlacementKind::kShard, split.dim};
    for (size_t earlier = 0; earlier < i; ++earlier) {
      const Split& other = splits[earlier];
      if (other.dim != split.dim) continue;
      if (position_of(axes, other.axis, other.parts) < position) continue;
      placement.split_factor *= other.parts;
    }
    if (placement.split_factor > 1) {
      placement.kind = PlacementKind::kStridedShard;
      check_equal_pieces(layout, i);
    }
    placements[position] = placement;
  }
  return placements;
}

Layout from_placements(std::vector<int64_t> global_shape,
                       std::span<const MeshAxis> axes,
                       std::span<const Placement> placements) {
  check_value(axes.size() == placements.size(), "placements: a device mesh of ",
              axes.size(), " axes needs as many placements, got ", placements.size());
  std::vector<Split> splits;
  std::vector<Replication> replications;
  // From right to left: a plain shard applies before all found so far, a strided one
  // after those of its dim that make up its factor.
  for (size_t i = axes.size(); i-- > 0;) {
    const Placement& placement = placements[i];
    if (placement.kind == PlacementKind::kReplicate) {
      replications.insert(replications.begin(), axes[i]);
      continue;
    }
    int64_t factor =
        placement.kind == PlacementKind::kStridedShard ? placement.split_factor : 1;
    auto before = splits.begin();
    for (; factor > 1 && before != splits.end(); ++before) {
      if (before->dim != placement.dim) continue;
      check_value(factor % before->parts == 0, "placements: the split factor ",
                  placement.split_factor, " of ", to_string(placement), " over '",
                  axes[i].axis, "' is not a product of the axes right of it");
      factor /= before->parts;
    }
    check_value(factor == 1, "placements: the split factor ", placement.split_factor,
                " of ", to_string(placement), " over '", axes[i].axis,
                "' is not a product of the axes right of it");
    splits.insert(before, {axes[i].axis, axes[i].size, placement.dim});
  }
  Layout layout(std::move(global_shape), std::move(splits), std::move(replications));
  to_placements(layout, axes);  // refuses strided shards of unequal pieces
  return layout;
}

}  // namespace torchtitan::mesh
