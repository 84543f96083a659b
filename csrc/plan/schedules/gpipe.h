// GPipe (Huang et al., 2019): all forwards, then all backwards.
#pragma once

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

// One stage per rank; any number of microbatches, which all live at once.
Schedule gpipe(int64_t num_ranks, int64_t num_microbatches);

}  // namespace torchtitan::plan::schedules
