#include "parallel/apply.h"

#include <c10/core/ScalarType.h>

#include <numeric>
#include <set>

#include "nn/whole_group.h"
#include "parallel/fsdp/sharded_group.h"
#include "parallel/pipeline/transport.h"
#include "plan/passes/step_program.h"
#include "plan/passes/transfers.h"

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

plan::SegmentShape segment_shape(const nn::Segment& segment, bool recompute,
                                 bool offload) {
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
          .recompute = recompute,
          .offload = offload,
          .weight_half_reads_parameters = segment.weight_half_reads_parameters()};
}

plan::Reshard reshard(const nn::ParameterGroupSpec& spec, const ApplyOptions& options) {
  using plan::Reshard;
  const auto asked = options.reshard_after_forward;
  if (options.pipeline && (asked != Reshard::kAlways || spec.stays_gathered)) {
    return Reshard::kAfterStep;
  }
  return spec.stays_gathered ? Reshard::kNever : asked;
}

// By segment: the blocks, where there is host memory for them.
std::vector<bool> offloaded(const nn::Model& model, const nn::HostStore* host) {
  std::vector<std::string> names;
  for (const auto& segment : model.segments) names.push_back(segment->name());
  if (host == nullptr) return std::vector<bool>(names.size(), false);
  return activation_checkpoint::select(
      names, {.mode = activation_checkpoint::Policy::Mode::kFull});
}

void add_programs(Applied& applied, const ApplyOptions& options) {
  namespace passes = plan::passes;
  const passes::StepOptions step{
      .prefetch_depth = options.overlap_depth,
      .reduce_depth = options.overlap_depth,
      .offload_depth = options.overlap_depth,
      .optimizer = options.early_optimizer_step
                       ? passes::OptimizerTiming::kAtLastGradient
                       : passes::OptimizerTiming::kAtEnd};
  auto forward_shape = applied.shape;
  if (!options.pipeline) {
    applied.training_program = passes::build_step_program(applied.shape, step);
    forward_shape.num_microbatches = applied.evaluation_microbatches = 1;
    applied.evaluation_program =
        passes::build_forward_program(forward_shape, options.overlap_depth);
    return;
  }
  auto pipeline = *options.pipeline;
  if (applied.model.own_forward) {
    // One call runs all segments of a stage: those of two stages cannot take turns.
    for (auto& actions : pipeline.training.ranks) {
      for (auto& action : actions) action.overlaps_next = false;
    }
  }
  const auto rank = static_cast<size_t>(pipeline.group.rank());
  applied.pipeline = pipeline.group;
  applied.shape.pipeline_ranks = pipeline.group.size();
  const auto& schedule = pipeline.training;
  TORCH_CHECK_VALUE(
      schedule.num_microbatches * pipeline.rounds == options.num_microbatches,
      "the schedule runs ", schedule.num_microbatches, " microbatches ",
      pipeline.rounds, " times, the step has ", options.num_microbatches);
  applied.training_program = passes::build_step_program(
      passes::repeat(passes::add_transfers(schedule).at(rank),
                     schedule.num_microbatches, pipeline.rounds),
      applied.shape, step);
  applied.evaluation_microbatches = pipeline.evaluation.num_microbatches;
  forward_shape.num_microbatches = applied.evaluation_microbatches;
  applied.evaluation_program =
      passes::build_forward_program(passes::add_transfers(pipeline.evaluation).at(rank),
                                    forward_shape, options.overlap_depth);
  applied.stages.transport =
      std::make_shared<pipeline::Transport>(pipeline.group, options.parameters.device,
                                            schedule.rank_of_stage, applied.stages);
}

}  // namespace

pipeline::Part whole(nn::Model model) {
  pipeline::Part part{.model = std::move(model)};
  part.segments.resize(part.model.segments.size());
  std::iota(part.segments.begin(), part.segments.end(), int64_t{0});
  part.ranks_of_group.assign(part.model.groups.size(), {0});
  return part;
}

Applied apply(pipeline::Part part, const ApplyOptions& options) {
  Applied applied;
  applied.model = std::move(part.model);
  applied.segments = std::move(part.segments);
  applied.stages = std::move(part.stages);
  applied.shape.stages = applied.stages.shapes;
  const auto& model = applied.model;
  applied.tensor = options.tensor;
  applied.checkpointing = activation_checkpoint::choose(model, options.recompute);
  applied.recompute = applied.checkpointing.recompute;
  applied.host = options.host;
  applied.shape.host_is_device = options.host && !options.host->moves();
  applied.shape.num_microbatches = options.num_microbatches;
  applied.shape.tensor_ranks = options.tensor.size();
  for (size_t g = 0; g < model.groups.size(); ++g) {
    const auto& spec = model.groups[g];
    applied.groups.push_back(make_group(spec, options));
    auto shape = group_shape(*applied.groups.back(), reshard(spec, options));
    if (const auto& ranks = part.ranks_of_group[g]; ranks.size() > 1) {
      shape.copies = static_cast<int64_t>(ranks.size());
      applied.groups.back()->share_with(options.pipeline->group, ranks);
    }
    applied.shape.groups.push_back(std::move(shape));
  }
  const auto offload = offloaded(model, options.host.get());
  for (size_t s = 0; s < model.segments.size(); ++s) {
    applied.shape.segments.push_back(
        segment_shape(*model.segments[s], applied.recompute[s], offload[s]));
  }
  add_programs(applied, options);
  return applied;
}

}  // namespace torchtitan::parallel
