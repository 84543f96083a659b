// Proof that a program computes the step and leaves nothing behind.
#pragma once

#include <span>

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan {

enum class ProgramKind {
  kTraining,     // every segment forward and backward on every microbatch, one update
  kForwardOnly,  // every segment forward on every microbatch, nothing else
};

// Replays the program on a model of the rank's memory. Accepts it only if
// * every action names what the shape has, and every start has exactly one Wait, later;
// * compute uses parameters that are gathered, inputs that exist and, in Backward, the
//   token count and what was saved; each Forward and Backward (whole or
//   in halves) runs exactly once, each Recompute once where the segment asks for it;
// * what a segment keeps goes to host memory at most once, between its Forward and its
//   use, only where it is to be offloaded, comes back, and is not used meanwhile;
// * what stages receive has come before it is read, what they send is there and is sent
//   once (that ranks do not wait for each other is shown elsewhere);
// * gradients are summed over shards and replicas when all their contributions are
//   there (of the microbatch, of the step), are not written meanwhile, and all are;
// * ClipGradient runs once, on final gradients; each trainable group steps once, with
//   its final gradient, after ClipGradient if all step together, and is not used
//   afterwards;
// * nothing stays gathered, saved or under way.
// Throws std::invalid_argument with the index and text of the first wrong action.
void verify(const Program& program, const StepShape& shape, ProgramKind kind);

// Ranks that hold the same shape must start the same communications in the same order,
// else they wait for each other for ever. Throws std::invalid_argument that names two
// ranks (positions in `programs`) and their first different starts.
void verify_agreement(std::span<const Program> programs);

}  // namespace torchtitan::plan
