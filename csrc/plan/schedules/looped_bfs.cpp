#include "plan/schedules/looped_bfs.h"

#include <algorithm>

#include "plan/schedules/order.h"

namespace torchtitan::plan::schedules {

Schedule looped_bfs(int64_t num_ranks, int64_t stages_per_rank,
                    int64_t num_microbatches) {
  Schedule schedule{loop_of_stages(num_ranks, stages_per_rank), num_microbatches, {}};
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    RankOrder order;
    for (int64_t i = 0; i < stages_per_rank; ++i) {
      for (int64_t m = 0; m < num_microbatches; ++m) {
        order.push_back({StageWork::kForward, rank + i * num_ranks, m});
      }
    }
    RankOrder backwards(order.rbegin(), order.rend());
    for (StageAction& action : backwards) action.work = StageWork::kBackward;
    order.insert(order.end(), backwards.begin(), backwards.end());
    schedule.ranks.push_back(std::move(order));
  }
  return schedule;
}

}  // namespace torchtitan::plan::schedules
