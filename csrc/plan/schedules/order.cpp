#include "plan/schedules/order.h"

namespace torchtitan::plan::schedules {

std::vector<int64_t> loop_of_stages(int64_t num_ranks, int64_t stages_per_rank) {
  std::vector<int64_t> ranks;
  for (int64_t stage = 0; stage < num_ranks * stages_per_rank; ++stage) {
    ranks.push_back(stage % num_ranks);
  }
  return ranks;
}

std::vector<int64_t> v_of_stages(int64_t num_ranks) {
  std::vector<int64_t> ranks;
  for (int64_t stage = 0; stage < 2 * num_ranks; ++stage) {
    ranks.push_back(stage < num_ranks ? stage : 2 * num_ranks - 1 - stage);
  }
  return ranks;
}

RankOrder one_forward_one_backward(const RankOrder& forwards,
                                   const RankOrder& backwards, int64_t num_first) {
  RankOrder order(forwards.begin(), forwards.begin() + num_first);
  size_t backward = 0;
  for (size_t forward = num_first; forward < forwards.size(); ++forward) {
    order.push_back(forwards[forward]);
    order.push_back(backwards[backward++]);
  }
  order.insert(order.end(), backwards.begin() + backward, backwards.end());
  return order;
}

RankOrder keep_microbatches(const RankOrder& order, int64_t num_microbatches) {
  RankOrder kept;
  for (size_t i = 0; i < order.size(); ++i) {
    if (order[i].microbatch >= num_microbatches) continue;
    kept.push_back(order[i]);
    if (order[i].overlaps_next && order[i + 1].microbatch >= num_microbatches) {
      kept.back().overlaps_next = false;
    }
  }
  return kept;
}

}  // namespace torchtitan::plan::schedules
