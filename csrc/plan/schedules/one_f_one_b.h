// 1F1B (PipeDream-Flush, Narayanan et al., 2021): a backward as soon as there is one,
// so that rank r keeps p - r microbatches where GPipe keeps all.
#pragma once

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

// One stage per rank; any number of microbatches.
Schedule one_f_one_b(int64_t num_ranks, int64_t num_microbatches);

}  // namespace torchtitan::plan::schedules
