#include "plan/schedules/gpipe.h"

#include "plan/schedules/order.h"

namespace torchtitan::plan::schedules {

Schedule gpipe(int64_t num_ranks, int64_t num_microbatches) {
  Schedule schedule{loop_of_stages(num_ranks, 1), num_microbatches, {}};
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    RankOrder& order = schedule.ranks.emplace_back();
    for (const StageWork work : {StageWork::kForward, StageWork::kBackward}) {
      for (int64_t m = 0; m < num_microbatches; ++m) order.push_back({work, rank, m});
    }
  }
  return schedule;
}

}  // namespace torchtitan::plan::schedules
