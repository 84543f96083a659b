// The smallest steps of a training step. A program is a list of them.
//
// Every communication is a start and a Wait: between the two, other actions may run.
// Indices are -1 where an action has none. The programs of a pipeline come in two
// forms: of stages (compute actions name a stage) and, for one rank, of the segments
// that its stages are made of.
#pragma once

#include <cstdint>
#include <string>

namespace torchtitan::plan {

enum class ActionKind {
  kCountTokens,        // start: sum the valid tokens of the step over all ranks
  kUnshard,            // start: gather the parameters of a group
  kReshard,            // free the gathered parameters of a group
  kForward,            // run a segment on a microbatch, keep what its backward needs
  kRecompute,          // run that forward again just before the backward
  kBackward,           // gradients of a segment's inputs; adds those of its parameters
  kBackwardInput,      // the first half of Backward: gradients of the inputs
  kBackwardWeight,     // the second half: adds the gradients of the parameters
  kReduceGradient,     // start: sum a sharded group's gradient over the shards' ranks
  kAllReduceGradient,  // start: sum a group's gradient over its replicas
  kSumCopies,          // start: sum a group's gradient over the stages that share it
  // Starts: copy what a segment keeps for its backward to host memory (the device's
  // is free from the Wait on), and bring it back.
  kOffload,
  kReload,
  kSendActivation,     // start: outputs of a stage, to the rank of the next stage
  kReceiveActivation,  // start: inputs of a stage, from the rank of the stage before
  kSendGradient,       // start: gradients of a stage's inputs, to the stage before
  kReceiveGradient,    // start: gradients of a stage's outputs, from the next stage
  kWait,           // the start of kind `waits_for` has ended and its result is valid
  kClipGradient,   // global gradient norm and clip factor; complete on return
  kOptimizerStep,  // step one group, or with group -1 all trainable ones
};

struct Action {
  ActionKind kind;
  int64_t stage = -1;  // of the whole pipeline
  int64_t segment = -1;
  int64_t group = -1;
  int64_t microbatch = -1;
  ActionKind waits_for = ActionKind::kWait;  // of a Wait: the kind of its start
  // This Forward of a stage and the backward after it run together.
  bool overlaps_next = false;

  bool operator==(const Action&) const = default;
};

// Forward, Recompute, Backward or a half of it: an action on one microbatch.
bool is_compute(const Action& action);

// Backward or one of its halves.
bool is_backward(const Action& action);

// A message between stages: one of the four starts above.
bool is_transfer(const Action& action);

// A copy between the device and host memory: Offload or Reload.
bool is_host_copy(const Action& action);

// An action that must be followed by a Wait of its kind with the same indices.
bool is_start(const Action& action);

// The Wait for a start.
Action wait_for(const Action& start);

// "Forward", "ReduceGradient", ...
std::string to_string(ActionKind kind);

// "Forward s2 mb0", "Wait Unshard g3", "SendActivation st1 mb0", "Forward st1 mb4 with
// the next": s segment, g group, st stage, mb microbatch.
std::string to_string(const Action& action);

}  // namespace torchtitan::plan
