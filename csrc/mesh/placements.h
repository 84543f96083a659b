// Layouts as PyTorch's DTensor writes them: one placement per axis of a device mesh.
//
// DTensor applies the placements of a mesh from left to right. A split that comes after
// splits of the same dim by axes further right (fsdp left of tp, but tp cuts first) is
// its _StridedShard, whose split factor is the product of those later axes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mesh/layout.h"

namespace torchtitan::mesh {

enum class PlacementKind { kReplicate, kShard, kStridedShard };

struct Placement {
  PlacementKind kind;
  int64_t dim = 0;           // of kShard and kStridedShard
  int64_t split_factor = 1;  // of kStridedShard

  bool operator==(const Placement&) const = default;
};

// "Replicate()", "Shard(0)" or "_StridedShard(0, 2)".
std::string to_string(const Placement& placement);

// An axis of a device mesh and its size.
using MeshAxis = Replication;

// One placement per axis of `axes`. Throws std::invalid_argument for what DTensor
// cannot say: a split or replication over an axis that is not listed or has another
// size, boundaries that are not torch.chunk's, repeated parts.
std::vector<Placement> to_placements(const Layout& layout,
                                     std::span<const MeshAxis> axes);

// The layout of `placements` over `axes`, splits in the order in which they apply.
// Throws std::invalid_argument if the counts differ, a split factor fits no axes, or a
// strided split meets pieces that are not of one size.
Layout from_placements(std::vector<int64_t> global_shape,
                       std::span<const MeshAxis> axes,
                       std::span<const Placement> placements);

}  // namespace torchtitan::mesh
