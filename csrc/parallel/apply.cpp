#include "parallel/apply.h"

#include <c10/core/ScalarType.h>

#include <set>

#include "nn/whole_group.h"
#include "parallel/fsdp/sharded_group.h"
#include "plan/passes/step_program.h"

namespace torchtitan::parallel {
namespace {

std::shared_ptr<nn::ParameterGroup> make_group(const nn::ParameterGroupSpec& spec,
                                               const ApplyOptions& options) {
  if (options.shards.size() == 1) {
    return std::make_shared<nn::WholeGroup>(spec, options.parameters, options.replicas);
  }
  return std::make_shared<fsdp::ShardedGroup>(spec, options.parameters, options.shards,
                                              options.replicas);
}

int64_t element_bytes(at::ScalarType dtype) {
  return static_cast<int64_t>(c10::elementSize(dtype));
}

plan::GroupShape group_shape(const nn::ParameterGroup& group, plan::Reshard reshard) {
  int64_t numel = 0;
  for (const auto& leaf : group.leaves()) numel += leaf.numel();
  const auto& options = group.options();
  return {.name = group.spec().name,
          .numel = numel,
          .shard_numel = group.master().numel(),
          .shards = group.shard_axis().size(),
          .replicas = group.replica_axis().size(),
          .master_bytes = element_bytes(options.master_dtype),
          .compute_bytes = element_bytes(options.compute_dtype),
          .reduce_bytes = element_bytes(options.reduce_dtype),
          .optimizer_bytes = 2 * element_bytes(options.master_dtype),
          .reshard_after_forward = reshard,
          .trainable = true};
}

plan::SegmentShape segment_shape(const nn::Segment& segment, bool recompute) {
  std::set<int64_t> groups;
  for (const auto& reference : segment.parameters()) groups.insert(reference.group);
  return {.name = segment.name(),
          .groups = {groups.begin(), groups.end()},
          .forward_flops = 0,
          .recompute_flops = 0,
          .backward_flops = 0,
          .input_bytes = 0,
          .output_bytes = 0,
          .saved_bytes = 0,
          .forward_temporary_bytes = 0,
          .backward_temporary_bytes = 0,
          .recompute = recompute};
}

}  // namespace

Applied apply(const nn::Model& model, const ApplyOptions& options) {
  Applied applied;
  applied.tensor = options.tensor;
  applied.checkpointing = activation_checkpoint::choose(model, options.recompute);
  applied.recompute = applied.checkpointing.recompute;
  applied.shape.num_microbatches = options.num_microbatches;
  applied.shape.tensor_ranks = options.tensor.size();
  for (const auto& spec : model.groups) {
    applied.groups.push_back(make_group(spec, options));
    applied.shape.groups.push_back(group_shape(
        *applied.groups.back(),
        spec.stays_gathered ? plan::Reshard::kNever : options.reshard_after_forward));
  }
  for (size_t s = 0; s < model.segments.size(); ++s) {
    applied.shape.segments.push_back(
        segment_shape(*model.segments[s], applied.recompute[s]));
  }
  applied.training_program = plan::passes::build_step_program(
      applied.shape, {.prefetch_depth = options.overlap_depth,
                      .reduce_depth = options.overlap_depth,
                      .optimizer = options.early_optimizer_step
                                       ? plan::passes::OptimizerTiming::kAtLastGradient
                                       : plan::passes::OptimizerTiming::kAtEnd});
  auto forward_shape = applied.shape;
  forward_shape.num_microbatches = 1;
  applied.evaluation_program =
      plan::passes::build_forward_program(forward_shape, options.overlap_depth);
  return applied;
}

}  // namespace torchtitan::parallel
