#include "plan/schedules/interleaved.h"

#include <algorithm>

#include "plan/schedules/rounds.h"

namespace torchtitan::plan::schedules {

int64_t interleaved_warmup(int64_t num_ranks, int64_t stages_per_rank,
                           int64_t num_microbatches, int64_t rank) {
  const int64_t round = round_sizes(num_ranks, num_microbatches).front();
  return std::min((stages_per_rank - 1) * round + 2 * (num_ranks - 1 - rank),
                  stages_per_rank * num_microbatches);
}

Schedule interleaved_one_f_one_b(int64_t num_ranks, int64_t stages_per_rank,
                                 int64_t num_microbatches) {
  Schedule schedule{loop_of_stages(num_ranks, stages_per_rank), num_microbatches, {}};
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    schedule.ranks.push_back(one_forward_one_backward(
        forwards_in_rounds(num_ranks, stages_per_rank, num_microbatches, rank),
        backwards_in_rounds(num_ranks, stages_per_rank, num_microbatches, rank,
                            StageWork::kBackward),
        interleaved_warmup(num_ranks, stages_per_rank, num_microbatches, rank)));
  }
  return schedule;
}

}  // namespace torchtitan::plan::schedules
