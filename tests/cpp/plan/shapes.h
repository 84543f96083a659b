// Small step shapes for the tests of plan/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan {

inline GroupShape small_group(int64_t index, int64_t shards, int64_t replicas,
                              Reshard reshard = Reshard::kDefault) {
  return {.name = "group" + std::to_string(index),
          .numel = 8 * shards,
          .shard_numel = 8,
          .shards = shards,
          .replicas = replicas,
          .master_bytes = 4,
          .compute_bytes = 2,
          .reduce_bytes = 4,
          .optimizer_bytes = 8,
          .reshard_after_forward = reshard,
          .trainable = true};
}

inline SegmentShape small_segment(int64_t index, std::vector<int64_t> groups,
                                  bool recompute = false) {
  return {.name = "segment" + std::to_string(index),
          .groups = std::move(groups),
          .forward_flops = 100,
          .recompute_flops = 90,
          .backward_flops = 200,
          .input_bytes = 16,
          .output_bytes = 16,
          .saved_bytes = 64,
          .forward_temporary_bytes = 4,
          .backward_temporary_bytes = 6,
          .recompute = recompute,
          .saves_outputs = true};
}

// Segment i uses group i.
inline StepShape chain(int64_t num_segments, int64_t shards, int64_t replicas,
                       int64_t num_microbatches, Reshard reshard = Reshard::kDefault) {
  StepShape shape{.segments = {}, .groups = {}, .num_microbatches = num_microbatches};
  for (int64_t i = 0; i < num_segments; ++i) {
    shape.segments.push_back(small_segment(i, {i}));
    shape.groups.push_back(small_group(i, shards, replicas, reshard));
  }
  return shape;
}

// One line per action, joined by "; ".
inline std::string one_line(const Program& program) {
  std::string text;
  for (const Action& action : program) {
    text += (text.empty() ? "" : "; ") + to_string(action);
  }
  return text;
}

}  // namespace torchtitan::plan
