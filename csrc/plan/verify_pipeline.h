// Proof that the programs of a pipeline's ranks do their work together.
#pragma once

#include <span>
#include <vector>

#include "plan/program.h"
#include "plan/verify.h"

namespace torchtitan::plan {

struct PipelineShape {
  std::vector<int64_t> rank_of_stage;
  int64_t num_microbatches;
  // By rank: the most pairs of stage and microbatch whose Forward has run and whose
  // Backward or BackwardWeight has not. Empty: no bound.
  std::vector<int64_t> live_bounds = {};
};

// Takes the programs of all ranks, by rank, with actions of stages and the messages
// between them (plan/passes/transfers.h). Accepts them only if
// * each stage does its work on every microbatch exactly once, on its own rank
//   (kTraining: Forward, and Backward or both of its halves; kForwardOnly: Forward);
// * every work finds what it needs: the outputs or gradients of a neighbour stage of
//   its rank, or a message that was received and waited for; its own Forward; for
//   BackwardWeight its BackwardInput; and every message is sent after it was made;
// * every start has exactly one Wait, later, and every message that a stage of another
//   rank needs is sent and received once, in the same order at both ends of a channel;
// * no order of events leaves ranks waiting for each other, where a Wait of a receive
//   ends when its send has started and a Wait of a send when its receive has;
// * a Forward that overlaps_next is followed by a backward of another microbatch;
// * no rank has more live activations than its bound.
// Throws std::invalid_argument with the rank, index and text of a wrong action.
void verify_pipeline(std::span<const Program> programs, const PipelineShape& shape,
                     ProgramKind kind);

}  // namespace torchtitan::plan
