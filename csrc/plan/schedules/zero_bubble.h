// Interleaved zero bubble (ZB-H1 of Qi et al., 2023, with several stages per rank):
// backward is split, and the gradients of the parameters, for which no other rank
// waits, fill what would be bubbles.
#pragma once

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

// Stage s on rank s % p; any number of microbatches, best a multiple of p
// (plan/schedules/rounds.h). Rank r holds back r gradients of parameters.
Schedule interleaved_zero_bubble(int64_t num_ranks, int64_t stages_per_rank,
                                 int64_t num_microbatches);

// Forwards of a rank before its first backward.
int64_t zero_bubble_warmup(int64_t num_ranks, int64_t stages_per_rank,
                           int64_t num_microbatches, int64_t rank);

}  // namespace torchtitan::plan::schedules
