// Microbatches in rounds, for schedules with several stages per rank ("depth first"):
// a round passes through all stages of a rank before the next one begins.
#pragma once

#include "plan/schedules/order.h"

namespace torchtitan::plan::schedules {

// The numbers of microbatches of max(1, m / p) rounds: as equal as can be, the larger
// ones first. From p microbatches on no round is smaller than p, so that the first
// outputs of a round come back to a rank when it has sent the last ones on.
std::vector<int64_t> round_sizes(int64_t num_ranks, int64_t num_microbatches);

// The forwards of a rank with the stages rank, rank + p, ...: in each round the first
// stage on all microbatches of the round, then the second one, ...
RankOrder forwards_in_rounds(int64_t num_ranks, int64_t stages_per_rank,
                             int64_t num_microbatches, int64_t rank);

// The same from the last stage to the first, with `work` kBackward or kBackwardInput.
RankOrder backwards_in_rounds(int64_t num_ranks, int64_t stages_per_rank,
                              int64_t num_microbatches, int64_t rank, StageWork work);

}  // namespace torchtitan::plan::schedules
