// What the orders of several schedules are made of.
#pragma once

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

using RankOrder = std::vector<StageAction>;

// The rank of each of p * v stages: stage s on rank s % p.
std::vector<int64_t> loop_of_stages(int64_t num_ranks, int64_t stages_per_rank);

// The rank of each of 2 p stages: rank r has the stages r and 2 p - 1 - r.
std::vector<int64_t> v_of_stages(int64_t num_ranks);

// The first `num_first` forwards, then a forward and a backward in turn, then the
// backwards that are left. Both lists are equally long.
RankOrder one_forward_one_backward(const RankOrder& forwards,
                                   const RankOrder& backwards, int64_t num_first);

// The order without the microbatches from `num_microbatches` on. What is left depends
// on nothing that is dropped, so a right schedule stays right.
RankOrder keep_microbatches(const RankOrder& order, int64_t num_microbatches);

}  // namespace torchtitan::plan::schedules
