// Interleaved 1F1B (Narayanan et al., 2021): several stages per rank divide the bubble
// of 1F1B by their number.
#pragma once

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

// Stage s on rank s % p; any number of microbatches, best a multiple of p
// (plan/schedules/rounds.h says what becomes of a remainder).
Schedule interleaved_one_f_one_b(int64_t num_ranks, int64_t stages_per_rank,
                                 int64_t num_microbatches);

// Forwards of a rank before its first backward.
int64_t interleaved_warmup(int64_t num_ranks, int64_t stages_per_rank,
                           int64_t num_microbatches, int64_t rank);

}  // namespace torchtitan::plan::schedules
