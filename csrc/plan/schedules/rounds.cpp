#include "plan/schedules/rounds.h"

#include <algorithm>

namespace torchtitan::plan::schedules {
namespace {

RankOrder in_rounds(int64_t num_ranks, int64_t num_microbatches, StageWork work,
                    const std::vector<int64_t>& stages) {
  RankOrder order;
  int64_t begin = 0;
  for (const int64_t size : round_sizes(num_ranks, num_microbatches)) {
    for (const int64_t stage : stages) {
      for (int64_t m = begin; m < begin + size; ++m) order.push_back({work, stage, m});
    }
    begin += size;
  }
  return order;
}

std::vector<int64_t> stages_of(int64_t num_ranks, int64_t stages_per_rank,
                               int64_t rank) {
  std::vector<int64_t> stages;
  for (int64_t i = 0; i < stages_per_rank; ++i) stages.push_back(rank + i * num_ranks);
  return stages;
}

}  // namespace

std::vector<int64_t> round_sizes(int64_t num_ranks, int64_t num_microbatches) {
  const int64_t num_rounds = std::max<int64_t>(1, num_microbatches / num_ranks);
  std::vector<int64_t> sizes(num_rounds, num_microbatches / num_rounds);
  for (int64_t i = 0; i < num_microbatches % num_rounds; ++i) ++sizes[i];
  return sizes;
}

RankOrder forwards_in_rounds(int64_t num_ranks, int64_t stages_per_rank,
                             int64_t num_microbatches, int64_t rank) {
  return in_rounds(num_ranks, num_microbatches, StageWork::kForward,
                   stages_of(num_ranks, stages_per_rank, rank));
}

RankOrder backwards_in_rounds(int64_t num_ranks, int64_t stages_per_rank,
                              int64_t num_microbatches, int64_t rank, StageWork work) {
  std::vector<int64_t> stages = stages_of(num_ranks, stages_per_rank, rank);
  std::reverse(stages.begin(), stages.end());
  return in_rounds(num_ranks, num_microbatches, work, stages);
}

}  // namespace torchtitan::plan::schedules
