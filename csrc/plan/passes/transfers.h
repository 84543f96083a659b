// Messages between the stages of a pipeline.
#pragma once

#include "plan/program.h"
#include "plan/schedules/schedule.h"

namespace torchtitan::plan::passes {

// The programs of all ranks, by rank: the schedule's work as Forward, Backward,
// BackwardInput and BackwardWeight of a `stage` and a `microbatch`, and messages:
//   SendActivation st mb     the outputs of stage st, to the rank of stage st + 1
//   ReceiveActivation st mb  the inputs of stage st, from the rank of stage st - 1
//   SendGradient st mb       the gradients of st's inputs, to the rank of stage st - 1
//   ReceiveGradient st mb    the gradients of st's outputs, from the rank of st + 1
// There is none where both stages are on one rank. Every start has one Wait.
//
// Network: between two ranks one channel in each direction. A channel knows no names:
// its n-th receive takes its n-th send, and a send is complete when its receive has
// been started and filled. Hence:
// * A send starts right after the work that makes it.
// * A channel's receives start in the order of its sends. Each starts `depth` works
//   before the one that needs it, or earlier if a later one of its channel does; its
//   Wait is right before that work.
// * The Wait of a send comes where the sender first knows, from what it has received,
//   that the receiver has the message; if nothing tells it, at the end. So it never
//   holds the pipeline up.
// A forward that overlaps_next and its backward are one work: they stay next to each
// other, behind the Waits of both and before the sends of both.
// Throws std::invalid_argument for a depth below 0 and for a schedule that
// schedules::check refuses (as kForwardOnly if it has no backward at all).
std::vector<Program> add_transfers(const schedules::Schedule& schedule,
                                   int64_t depth = 1);

}  // namespace torchtitan::plan::passes
