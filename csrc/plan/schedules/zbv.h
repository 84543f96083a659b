// ZB-V (Qi et al., 2023, section 6): two stages per rank in a V and a split backward.
// No bubble between the first and the last action of a rank where forward, backward of
// inputs and backward of weights take equally long, with the memory of 1F1B.
#pragma once

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

// Rank r has the stages r and 2 p - 1 - r; any number of microbatches, best at least
// 2 p - 1.
Schedule zbv_zero_bubble(int64_t num_ranks, int64_t num_microbatches);

}  // namespace torchtitan::plan::schedules
