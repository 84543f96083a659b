// A hyper-rectangle of a tensor: offset and size per dim, none for a scalar.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/checked_math.h"

namespace torchtitan::storage {

struct Box {
  std::vector<int64_t> offset;
  std::vector<int64_t> size;

  bool operator==(const Box&) const = default;
};

// Throws std::invalid_argument unless the box lies inside a tensor of this shape.
inline void check_inside(const Box& box, std::span<const int64_t> shape,
                         std::string_view where) {
  base::check_value(
      box.offset.size() == shape.size() && box.size.size() == shape.size(), where,
      ": expected a box of ", shape.size(), " dims, found ", box.offset.size(),
      " offsets and ", box.size.size(), " sizes");
  for (size_t d = 0; d < shape.size(); ++d) {
    const int64_t offset = box.offset[d], size = box.size[d];
    base::check_value(
        offset >= 0 && size >= 0 && offset <= shape[d] && size <= shape[d] - offset,
        where, ": box [", offset, ", ", offset, " + ", size, ") of dim ", d,
        " lies outside its size ", shape[d]);
  }
}

}  // namespace torchtitan::storage
