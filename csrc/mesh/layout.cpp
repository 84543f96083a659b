#include "mesh/layout.h"

#include <algorithm>
#include <set>

#include "base/checked_math.h"

namespace torchtitan::mesh {
namespace {

using base::check_value;

struct Piece {
  int64_t begin;
  int64_t end;
};

// Part `part` of [0, extent).
Piece piece_of(const Split& split, int64_t extent, int64_t part) {
  if (!split.boundaries.empty()) {
    return {split.boundaries[part], split.boundaries[part + 1]};
  }
  const int64_t chunk = base::ceil_div(extent, split.parts);
  return {std::min(extent, part * chunk), std::min(extent, (part + 1) * chunk)};
}

int64_t part_at(const Split& split, const Coordinates& coordinates) {
  const auto found = coordinates.find(split.axis);
  check_value(found != coordinates.end(), "layout: the coordinates lack axis '",
              split.axis, "'");
  const int64_t size = split.parts * split.repeat;
  check_value(found->second >= 0 && found->second < size, "layout: coordinate ",
              found->second, " on axis '", split.axis, "' of size ", size);
  return found->second / split.repeat;
}

void check_boundaries(const Split& split, const std::set<int64_t>& extents) {
  const auto& bounds = split.boundaries;
  check_value(static_cast<int64_t>(bounds.size()) == split.parts + 1,
              "layout: the split over '", split.axis, "' has ", split.parts,
              " parts and needs ", split.parts + 1, " boundaries, got ", bounds.size());
  check_value(std::is_sorted(bounds.begin(), bounds.end()) && bounds.front() == 0,
              "layout: boundaries of the split over '", split.axis,
              "' must start at 0 and never decrease");
  check_value(extents == std::set<int64_t>{bounds.back()}, "layout: boundaries of the ",
              "split over '", split.axis, "' end at ", bounds.back(), ", but it cuts ",
              extents.size() == 1 ? "a piece" : "pieces of several extents, one",
              " of extent ", *extents.begin());
}

// The extents of the pieces that `split` makes of pieces of these extents.
std::set<int64_t> cut(const Split& split, const std::set<int64_t>& extents) {
  std::set<int64_t> result;
  for (const int64_t extent : extents) {
    for (int64_t part = 0; part < split.parts; ++part) {
      const Piece piece = piece_of(split, extent, part);
      result.insert(piece.end - piece.begin);
    }
  }
  return result;
}

void check_axis(const std::string& axis, std::set<std::string>& used) {
  check_value(used.insert(axis).second, "layout: axis '", axis, "' is used twice");
}

}  // namespace

int64_t Box::num_elements() const { return base::checked_product(size); }

Layout::Layout(std::vector<int64_t> global_shape, std::vector<Split> splits,
               std::vector<Replication> replications)
    : global_shape_(std::move(global_shape)), splits_(std::move(splits)),
      replications_(std::move(replications)) {
  std::vector<std::set<int64_t>> extents;  // possible piece extents of each dim so far
  for (const int64_t size : global_shape_) {
    check_value(size >= 0, "layout: a tensor has no dim of size ", size);
    extents.push_back({size});
  }
  std::set<std::string> used;
  for (const Split& split : splits_) {
    check_axis(split.axis, used);
    check_value(split.parts >= 1 && split.repeat >= 1, "layout: the split over '",
                split.axis, "' has ", split.parts, " parts repeated ", split.repeat,
                " times; both must be at least 1");
    check_value(split.dim >= 0 && split.dim < static_cast<int64_t>(extents.size()),
                "layout: the split over '", split.axis, "' cuts dim ", split.dim,
                " of a tensor of ", extents.size(), " dims");
    if (!split.boundaries.empty()) check_boundaries(split, extents[split.dim]);
    extents[split.dim] = cut(split, extents[split.dim]);
  }
  for (const auto& [axis, size] : replications_) {
    check_axis(axis, used);
    check_value(size >= 1, "layout: replicated axis '", axis, "' has size ", size);
  }
}

Box Layout::box(const Coordinates& coordinates) const {
  Box box{.offset = std::vector<int64_t>(global_shape_.size(), 0),
          .size = global_shape_};
  for (const Split& split : splits_) {
    int64_t& size = box.size[split.dim];
    const Piece piece = piece_of(split, size, part_at(split, coordinates));
    box.offset[split.dim] += piece.begin;
    size = piece.end - piece.begin;
  }
  return box;
}

int64_t Layout::num_shards() const {
  int64_t shards = 1;
  for (const Split& split : splits_) shards = base::checked_mul(shards, split.parts);
  return shards;
}

int64_t Layout::largest_shard_elements() const {
  std::vector<std::set<int64_t>> extents;
  for (const int64_t size : global_shape_) extents.push_back({size});
  for (const Split& split : splits_) {
    extents[split.dim] = cut(split, extents[split.dim]);
  }
  int64_t elements = 1;
  for (const auto& of_dim : extents) {
    elements = base::checked_mul(elements, *of_dim.rbegin());
  }
  return elements;
}

bool Layout::is_writer(const Coordinates& coordinates) const {
  bool first = true;
  for (const Split& split : splits_) {
    part_at(split, coordinates);  // refuses a missing or wrong coordinate
    first = first && coordinates.find(split.axis)->second % split.repeat == 0;
  }
  for (const auto& [axis, size] : replications_) {
    const auto found = coordinates.find(axis);
    check_value(found != coordinates.end(), "layout: the coordinates lack axis '", axis,
                "'");
    check_value(found->second >= 0 && found->second < size, "layout: coordinate ",
                found->second, " on axis '", axis, "' of size ", size);
    first = first && found->second == 0;
  }
  return first;
}

std::vector<Coordinates> Layout::writers() const {
  Coordinates origin;
  for (const auto& [axis, size] : replications_) origin[axis] = 0;
  std::vector<Coordinates> writers{origin};
  for (const Split& split : splits_) {
    std::vector<Coordinates> next;
    for (const Coordinates& writer : writers) {
      for (int64_t part = 0; part < split.parts; ++part) {
        next.push_back(writer);
        next.back()[split.axis] = part * split.repeat;
      }
    }
    writers = std::move(next);
  }
  return writers;
}

}  // namespace torchtitan::mesh
