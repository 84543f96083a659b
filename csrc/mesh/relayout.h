// The copies that turn the shards of one Layout into those of another: loading, elastic
// resume, weight transfer. Pure arithmetic; the caller moves the bytes.
#pragma once

#include <span>
#include <vector>

#include "mesh/layout.h"

namespace torchtitan::mesh {

// The part of the global tensor that shard `source` gives to shard `target`. Never
// empty.
struct Copy {
  int64_t source;
  int64_t target;
  Box box;  // in global indices

  bool operator==(const Copy&) const = default;
};

// The common elements of two boxes of one tensor; without any, a box of size 0 in some
// dim.
Box intersection(const Box& a, const Box& b);

// `box` in the indices of the tensor that holds only `shard`: what to narrow it by.
// Throws std::invalid_argument if a part of `box` lies outside `shard`.
Box relative_to(const Box& box, const Box& shard);

// The copies that fill `target` from `sources`, ordered by source; `target` of each is
// 0. Throws std::invalid_argument if the sources leave a part of the target unfilled or
// fill an element twice.
std::vector<Copy> copies_into(std::span<const Box> sources, const Box& target);

// All copies from one layout to another: `source` counts from.writers(), `target`
// counts to.writers(); ordered by target, then source. Throws if the global shapes
// differ.
std::vector<Copy> relayout(const Layout& from, const Layout& to);

}  // namespace torchtitan::mesh
