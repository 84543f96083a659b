// What a planner must know of a model on one rank: no tensors, only sizes and counts.
// Bytes and flops are per microbatch; element counts are of this rank's part of the
// model (its tensor-parallel piece, its pipeline stage).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/action.h"

namespace torchtitan::plan {

// What becomes of gathered parameters between two uses.
enum class Reshard {
  kAlways,   // freed after every forward and every backward
  kDefault,  // as kAlways, but kept where the very next segment to run needs them
  kNever,    // kept from forward to backward of a microbatch as well
  // Kept from the first use to the last of a step, and the gradient, summed over all
  // microbatches, is reduced once: a pipeline works on many microbatches in turn.
  kAfterStep,
};

// Parameters that are gathered, reduced and stepped together.
struct GroupShape {
  std::string name;
  int64_t numel;            // elements of the whole group, without padding
  int64_t shard_numel;      // elements stored by one rank, with padding
  int64_t shards;           // ranks that share the group; 1: never gathered
  int64_t replicas;         // equal copies of each shard
  int64_t master_bytes;     // per element of the stored parameters
  int64_t compute_bytes;    // per element of the gathered parameters
  int64_t reduce_bytes;     // per element of the gradients
  int64_t optimizer_bytes;  // per element, of all the optimizer's states together
  Reshard reshard_after_forward;
  bool trainable;  // false: no gradient and no optimizer step
  // Elements that the transport holds during a gather or a reduction, beside the
  // tensors that it is given. Gloo: what it receives, before it is copied or added up.
  int64_t transport_numel = 0;
  int64_t copies = 1;  // ranks of the pipeline whose stages share the group
  // Mesh axes of the two counts above.
  std::string shard_axis = "fsdp";
  std::string replica_axis = "dp_replicate";
};

// A collective inside a segment, which waits for it.
struct Exchange {
  std::string axis;
  std::string verb;  // as in plan/traffic.h, or "send" or "recv" of a ring
  int64_t ranks;
  int64_t bytes;  // of the larger side

  bool operator==(const Exchange&) const = default;
};

// A link of the model's chain.
struct SegmentShape {
  std::string name;
  std::vector<int64_t> groups;  // indices of the parameter groups it uses
  int64_t forward_flops;
  int64_t recompute_flops;          // of running forward again for its backward
  int64_t backward_flops;           // without recomputation
  int64_t input_bytes;              // tensors it is given
  int64_t output_bytes;             // tensors it hands to the next segment
  int64_t saved_bytes;              // what its backward needs beyond inputs and outputs
  int64_t forward_temporary_bytes;  // most that forward needs beyond all of these
  int64_t backward_temporary_bytes;  // most that backward needs beyond all of these
  bool recompute;                    // keep the inputs, run forward again
  // Whether what is saved includes the outputs, which else die with their last reader.
  bool saves_outputs = false;
  int64_t kept_bytes = 0;  // of saved_bytes, what is kept for running forward again
  // What is kept for its backward may wait for it in host memory: bytes of the tensors
  // that then move, inputs included.
  bool offload = false;
  int64_t offload_bytes = 0;
  // A backward in two halves: flops of the second one, what the first leaves for it
  // (gradients of the outputs included) and what each needs beyond that.
  int64_t weight_flops = 0;  // of backward_flops
  int64_t rest_bytes = 0;
  int64_t input_half_temporary_bytes = 0;
  int64_t weight_half_temporary_bytes = 0;
  bool weight_half_reads_parameters = false;  // then they are gathered for it
  std::vector<Exchange> forward_exchanges = {};
  std::vector<Exchange> recompute_exchanges = {};
  std::vector<Exchange> backward_exchanges = {};
  std::vector<Exchange> backward_input_exchanges = {};  // of the halves
  std::vector<Exchange> backward_weight_exchanges = {};
};

// Segments whose neighbours may lie on other ranks (pipeline parallelism).
struct StageShape {
  int64_t index;          // in the whole pipeline
  int64_t first_segment;  // of this rank's
  int64_t num_segments;
  bool is_last;   // of the whole pipeline
  bool receives;  // its inputs come from another rank, to which their gradients go
  bool sends;     // its outputs go to another rank, from which their gradients come
  int64_t received_bytes = 0;  // of the inputs that it receives, per microbatch

  int64_t end() const { return first_segment + num_segments; }
};

struct StepShape {
  std::vector<SegmentShape> segments;  // in forward order
  std::vector<GroupShape> groups;
  int64_t num_microbatches;
  // Tensors that live through the whole step beside parameters and the inputs of the
  // first segment: tables of the model, labels.
  int64_t constant_bytes = 0;
  // Host memory is the memory of the device (a CPU): what is offloaded stays where it
  // is.
  bool host_is_device = false;
  int64_t tensor_ranks = 1;  // of the axis "tp", over which the squared norm is summed
  // This rank's, in forward order: all segments, each once. Empty where the rank has
  // the whole model.
  std::vector<StageShape> stages = {};
  int64_t pipeline_ranks = 1;  // of the axis "pp"
  // With stages: of the tensors of a microbatch that the first segment of the whole
  // model reads. Each rank has its own.
  int64_t microbatch_bytes = 0;

  // Of what the batch gives to a microbatch beside the constants.
  int64_t batch_bytes() const {
    return stages.empty() ? segments.front().input_bytes : microbatch_bytes;
  }
};

// Throws std::invalid_argument for a shape that no step can have: no segment, no
// microbatch, a group index out of range or named twice by a segment, counts below 1,
// negative sizes, stages that do not divide the segments in order.
void check(const StepShape& shape);

// The stage of this rank that an action names. Throws std::invalid_argument if it has
// none such.
const StageShape& stage_of(const Action& action, const StepShape& shape);

// The shape where every sharded group's transport receives into buffers of its own, as
// Gloo does: shards * shard_numel elements.
StepShape with_transport_buffers(StepShape shape);

// The shape with this many bytes of optimizer states per element in every group.
StepShape with_optimizer_bytes(StepShape shape, int64_t optimizer_bytes);

}  // namespace torchtitan::plan
