#include "plan/schedules/zero_bubble.h"

#include <algorithm>

#include "plan/schedules/rounds.h"

namespace torchtitan::plan::schedules {
namespace {

// After each backward of inputs the oldest backward of weights, once more than
// `num_held` wait; the rest at the end.
RankOrder add_weight_backwards(const RankOrder& order, int64_t num_held) {
  RankOrder result, waiting;
  int64_t next = 0;
  for (const StageAction& action : order) {
    result.push_back(action);
    if (action.work != StageWork::kBackwardInput) continue;
    waiting.push_back({StageWork::kBackwardWeight, action.stage, action.microbatch});
    if (static_cast<int64_t>(waiting.size()) - next > num_held) {
      result.push_back(waiting[next++]);
    }
  }
  result.insert(result.end(), waiting.begin() + next, waiting.end());
  return result;
}

}  // namespace

int64_t zero_bubble_warmup(int64_t num_ranks, int64_t stages_per_rank,
                           int64_t num_microbatches, int64_t rank) {
  const int64_t round = round_sizes(num_ranks, num_microbatches).front();
  return std::min((stages_per_rank - 1) * round + num_ranks - 1 - rank,
                  stages_per_rank * num_microbatches);
}

Schedule interleaved_zero_bubble(int64_t num_ranks, int64_t stages_per_rank,
                                 int64_t num_microbatches) {
  Schedule schedule{loop_of_stages(num_ranks, stages_per_rank), num_microbatches, {}};
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    const RankOrder order = one_forward_one_backward(
        forwards_in_rounds(num_ranks, stages_per_rank, num_microbatches, rank),
        backwards_in_rounds(num_ranks, stages_per_rank, num_microbatches, rank,
                            StageWork::kBackwardInput),
        zero_bubble_warmup(num_ranks, stages_per_rank, num_microbatches, rank));
    schedule.ranks.push_back(add_weight_backwards(order, rank));
  }
  return schedule;
}

}  // namespace torchtitan::plan::schedules
