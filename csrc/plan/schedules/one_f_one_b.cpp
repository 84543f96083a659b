#include "plan/schedules/one_f_one_b.h"

#include <algorithm>

#include "plan/schedules/order.h"

namespace torchtitan::plan::schedules {

Schedule one_f_one_b(int64_t num_ranks, int64_t num_microbatches) {
  Schedule schedule{loop_of_stages(num_ranks, 1), num_microbatches, {}};
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    RankOrder forwards, backwards;
    for (int64_t m = 0; m < num_microbatches; ++m) {
      forwards.push_back({StageWork::kForward, rank, m});
      backwards.push_back({StageWork::kBackward, rank, m});
    }
    const int64_t num_first = std::min(num_microbatches, num_ranks - 1 - rank);
    schedule.ranks.push_back(one_forward_one_backward(forwards, backwards, num_first));
  }
  return schedule;
}

}  // namespace torchtitan::plan::schedules
