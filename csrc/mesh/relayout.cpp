#include "mesh/relayout.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace torchtitan::mesh {
namespace {

using base::check_value;

std::string text(std::span<const int64_t> values) {
  std::string result = "[";
  for (const int64_t value : values) {
    if (result.size() > 1) result += ", ";
    result += std::to_string(value);
  }
  return result + "]";
}

std::string text(const Box& box) {
  return "offset " + text(box.offset) + " size " + text(box.size);
}

std::vector<Box> boxes_of_writers(const Layout& layout) {
  std::vector<Box> boxes;
  for (const Coordinates& writer : layout.writers())
    boxes.push_back(layout.box(writer));
  return boxes;
}

}  // namespace

Box intersection(const Box& a, const Box& b) {
  check_value(a.offset.size() == b.offset.size(), "intersection: boxes of ",
              a.offset.size(), " and ", b.offset.size(), " dims");
  Box common = a;
  for (size_t dim = 0; dim < a.offset.size(); ++dim) {
    const int64_t begin = std::max(a.offset[dim], b.offset[dim]);
    const int64_t end =
        std::min(a.offset[dim] + a.size[dim], b.offset[dim] + b.size[dim]);
    common.offset[dim] = begin;
    common.size[dim] = std::max<int64_t>(0, end - begin);
  }
  return common;
}

Box relative_to(const Box& box, const Box& shard) {
  check_value(intersection(box, shard) == box, "relative_to: the box ", text(box),
              " is not inside the shard ", text(shard));
  Box relative = box;
  for (size_t dim = 0; dim < box.offset.size(); ++dim) {
    relative.offset[dim] -= shard.offset[dim];
  }
  return relative;
}

std::vector<Copy> copies_into(std::span<const Box> sources, const Box& target) {
  std::vector<Copy> copies;
  int64_t filled = 0;
  for (size_t source = 0; source < sources.size(); ++source) {
    Box common = intersection(sources[source], target);
    const int64_t num_elements = common.num_elements();
    if (num_elements == 0) continue;
    for (const Copy& other : copies) {
      check_value(intersection(other.box, common).num_elements() == 0,
                  "copies_into: sources ", other.source, " (",
                  text(sources[other.source]), ") and ", source, " (",
                  text(sources[source]), ") overlap");
    }
    filled += num_elements;
    copies.push_back({static_cast<int64_t>(source), 0, std::move(common)});
  }
  check_value(filled == target.num_elements(), "copies_into: the sources hold ", filled,
              " of the ", target.num_elements(), " elements of the target (",
              text(target), ")");
  return copies;
}

std::vector<Copy> relayout(const Layout& from, const Layout& to) {
  check_value(from.global_shape() == to.global_shape(),
              "relayout: the tensors have shapes ", text(from.global_shape()), " and ",
              text(to.global_shape()));
  const std::vector<Box> sources = boxes_of_writers(from);
  const std::vector<Box> targets = boxes_of_writers(to);
  std::vector<Copy> copies;
  for (size_t target = 0; target < targets.size(); ++target) {
    for (Copy& copy : copies_into(sources, targets[target])) {
      copy.target = static_cast<int64_t>(target);
      copies.push_back(std::move(copy));
    }
  }
  return copies;
}

}  // namespace torchtitan::mesh
