// DualPipeV (the V-shaped half of DeepSeek's DualPipe, DeepSeek-V3, 2024): forwards of
// one chunk run together with backwards of the other, so that the communication inside
// one hides behind the compute of the other.
#pragma once

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

// Rank r has the stages r and 2 p - 1 - r; any number of microbatches, best at least
// 2 p.
Schedule dual_pipe_v(int64_t num_ranks, int64_t num_microbatches);

}  // namespace torchtitan::plan::schedules
