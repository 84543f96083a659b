// Where a tensor lives: which box of it every rank holds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mesh/mesh.h"

namespace torchtitan::mesh {

// A hyper-rectangle of a tensor: elements offset[d] <= index[d] < offset[d] + size[d].
// Any size may be zero. A scalar's box has no dims and one element.
struct Box {
  std::vector<int64_t> offset;
  std::vector<int64_t> size;

  int64_t num_elements() const;
  bool operator==(const Box&) const = default;
};

// Cuts one dim into `parts` along a mesh axis.
struct Split {
  std::string axis;
  int64_t parts;
  int64_t dim;
  // Empty: the pieces of torch.chunk (all ceil(n / parts) long until the dim is used
  // up; the last ones may be short or empty). Else parts + 1 positions that never
  // decrease, from 0 to the extent of what is cut.
  std::vector<int64_t> boundaries = {};
  // Neighbours on the axis that hold the same part: coordinate c holds part c / repeat,
  // and the axis has parts * repeat ranks (key-value heads fewer than tensor ranks).
  int64_t repeat = 1;

  bool operator==(const Split&) const = default;
};

// An axis along which every rank holds the same numbers.
struct Replication {
  std::string axis;
  int64_t size;

  bool operator==(const Replication&) const = default;
};

// The place of one tensor. Splits apply in order, each to what the previous ones left,
// so two axes may cut one dim: {tp, dim 0} then {fsdp, dim 0} shards each
// tensor-parallel piece. A rank holds exactly one box; ranks that differ only in
// replicated axes hold the same one, and the boxes of the others are disjoint and cover
// the tensor.
class Layout {
 public:
  // Throws std::invalid_argument for a negative size, a dim outside the tensor, an axis
  // used twice, parts, repeat or size below 1, or boundaries that do not fit (explicit
  // ones need pieces of one extent to cut).
  explicit Layout(std::vector<int64_t> global_shape, std::vector<Split> splits = {},
                  std::vector<Replication> replications = {});

  const std::vector<int64_t>& global_shape() const { return global_shape_; }
  const std::vector<Split>& splits() const { return splits_; }
  const std::vector<Replication>& replications() const { return replications_; }
  bool operator==(const Layout&) const = default;

  // The box held at `coordinates`, which name at least the axes of the splits; other
  // axes are ignored. Throws std::invalid_argument for a missing axis or one out of
  // range.
  Box box(const Coordinates& coordinates) const;

  // Number of different boxes, empty ones included: the product of the splits' parts.
  int64_t num_shards() const;

  // The largest number of elements of any box: what a shard is padded to when all ranks
  // must contribute alike to one collective.
  int64_t largest_shard_elements() const;

  // Among the ranks that hold the same box exactly one is its writer: the one with
  // coordinate 0 on each replicated axis and first among its repeats. `coordinates`
  // name the axes of splits and replications.
  bool is_writer(const Coordinates& coordinates) const;

  // The writers, first split slowest: num_shards() coordinates on the axes of splits
  // and replications.
  std::vector<Coordinates> writers() const;

 private:
  std::vector<int64_t> global_shape_;
  std::vector<Split> splits_;
  std::vector<Replication> replications_;
};

}  // namespace torchtitan::mesh
