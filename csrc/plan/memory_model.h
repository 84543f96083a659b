// Tensor bytes of one rank while it runs a program.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan {

// Live bytes by what they are for.
struct MemoryUse {
  int64_t constant = 0;    // StepShape::constant_bytes and the inputs of the batch
  int64_t parameters = 0;  // stored shards; compute copies of groups that stay whole
  int64_t gradients = 0;   // summed gradients of the shards
  int64_t optimizer = 0;   // states
  int64_t gathered = 0;    // whole parameters and the buffers of their gathers
  int64_t whole_gradients = 0;  // before their reduction, and the buffers of it
  int64_t activations = 0;  // saved for backward, boundary tensors and their gradients
  int64_t temporaries = 0;  // inside the running segment

  int64_t total() const;
  bool operator==(const MemoryUse&) const = default;
};

struct MemoryEstimate {
  MemoryUse before;             // between steps
  MemoryUse after;              // when the program has ended; of a verified one: before
  MemoryUse peak;               // at the moment of the largest total
  int64_t peak_action;          // index of the action in which that is; -1: before
  std::vector<int64_t> totals;  // highest total during each action
  int64_t host_peak = 0;        // most bytes in host memory, in no total
};

// Replays a verified program on the buffers of the step:
// * Unshard holds the shard in compute dtype (if that differs from the stored one) and
//   a packed buffer of shards * shard_numel elements, and the transport its own; its
//   Wait moves them to numel elements that Reshard frees.
// * The first Backward of a sharded group after a reduction makes a whole gradient of
//   numel elements; ReduceGradient packs it into shards * shard_numel elements, frees
//   it and holds one more shard, and the transport its own buffer, until its Wait.
// * Forward makes the outputs and, in a training program, what is saved. An output
//   lives until the next segment's Backward has ended, and until that of its own
//   segment where it is among what that saved. A forward that saves nothing, or that
//   keeps some for its Recompute, needs the same bytes for a moment.
// * Backward makes the gradient of the inputs, drops that of the outputs and the saved
//   tensors when it has ended. BackwardInput leaves the rest, which BackwardWeight
//   drops.
// * The Wait of an Offload frees what was copied, but for inputs that the segment
// before
//   saves as well; Reload holds all of it again. Host memory holds it from the Offload
//   to the Wait of the Reload. Where host memory is the device's, nothing changes.
// * A receive holds its values from its start, a send until its Wait.
MemoryEstimate estimate_memory(const Program& program, const StepShape& shape);

}  // namespace torchtitan::plan
