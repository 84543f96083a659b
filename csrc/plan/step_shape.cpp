#include "plan/step_shape.h"

#include <algorithm>
#include <set>

#include "base/checked_math.h"
#include "base/errors.h"

namespace torchtitan::plan {
namespace {

using base::check_value;

void check(const GroupShape& group) {
  check_value(group.shards >= 1 && group.replicas >= 1, "step shape: group '",
              group.name, "' has ", group.shards, " shards and ", group.replicas,
              " replicas; both must be at least 1");
  check_value(
      std::min({group.numel, group.shard_numel, group.master_bytes, group.compute_bytes,
                group.reduce_bytes, group.optimizer_bytes, group.transport_numel}) >= 0,
      "step shape: group '", group.name, "' has a negative size");
}

void check(const SegmentShape& segment, int64_t num_groups) {
  std::set<int64_t> used;
  for (const int64_t group : segment.groups) {
    check_value(group >= 0 && group < num_groups, "step shape: segment '", segment.name,
                "' uses group ", group, " of ", num_groups);
    check_value(used.insert(group).second, "step shape: segment '", segment.name,
                "' names group ", group, " twice");
  }
  check_value(
      std::min({segment.forward_flops, segment.recompute_flops, segment.backward_flops,
                segment.input_bytes, segment.output_bytes, segment.saved_bytes,
                segment.forward_temporary_bytes, segment.backward_temporary_bytes,
                segment.kept_bytes, segment.weight_flops, segment.rest_bytes,
                segment.input_half_temporary_bytes,
                segment.weight_half_temporary_bytes}) >= 0,
      "step shape: segment '", segment.name, "' has a negative size");
  check_value(segment.offload_bytes >= 0, "step shape: offload_bytes of segment '",
              segment.name, "' is negative");
  check_value(segment.kept_bytes <= segment.saved_bytes &&
                  segment.weight_flops <= segment.backward_flops,
              "step shape: segment '", segment.name,
              "' keeps more than it saves, or half of its backward is more than all");
}

void check_stages(const StepShape& shape) {
  if (shape.stages.empty()) return;
  int64_t segment = 0, index = -1;
  for (const StageShape& stage : shape.stages) {
    check_value(stage.index > index && stage.first_segment == segment &&
                    stage.num_segments >= 1,
                "step shape: stage ", stage.index, " has segments ",
                stage.first_segment, " to ", stage.end(), " after stage ", index,
                ", which ends before segment ", segment);
    index = stage.index;
    segment = stage.end();
  }
  check_value(segment == static_cast<int64_t>(shape.segments.size()),
              "step shape: the stages have ", segment, " of ", shape.segments.size(),
              " segments");
}

}  // namespace

void check(const StepShape& shape) {
  check_value(!shape.segments.empty(), "step shape: a model has at least one segment");
  check_value(shape.num_microbatches >= 1,
              "step shape: a step has at least one microbatch, got ",
              shape.num_microbatches);
  check_value(shape.constant_bytes >= 0, "step shape: constant_bytes is negative");
  for (const GroupShape& group : shape.groups) check(group);
  for (const SegmentShape& segment : shape.segments) {
    check(segment, static_cast<int64_t>(shape.groups.size()));
  }
  check_stages(shape);
}

const StageShape& stage_of(const Action& action, const StepShape& shape) {
  const auto found = std::find_if(
      shape.stages.begin(), shape.stages.end(),
      [&](const StageShape& stage) { return stage.index == action.stage; });
  check_value(found != shape.stages.end(), to_string(action),
              " is of a stage that this rank does not have");
  return *found;
}

StepShape with_transport_buffers(StepShape shape) {
  for (GroupShape& group : shape.groups) {
    if (group.shards > 1) {
      group.transport_numel = base::checked_mul(group.shards, group.shard_numel);
    }
  }
  return shape;
}

StepShape with_optimizer_bytes(StepShape shape, int64_t optimizer_bytes) {
  for (GroupShape& group : shape.groups) group.optimizer_bytes = optimizer_bytes;
  return shape;
}

}  // namespace torchtitan::plan
