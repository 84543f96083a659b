#include "plan/schedules/forward_only.h"

namespace torchtitan::plan::schedules {

Schedule forward_only(const Schedule& training) {
  Schedule schedule{training.rank_of_stage, training.num_microbatches, {}};
  for (const auto& actions : training.ranks) {
    auto& forwards = schedule.ranks.emplace_back();
    for (StageAction action : actions) {
      if (action.work != StageWork::kForward) continue;
      action.overlaps_next = false;
      forwards.push_back(action);
    }
  }
  return schedule;
}

}  // namespace torchtitan::plan::schedules
