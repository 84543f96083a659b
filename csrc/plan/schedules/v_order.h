// Writes the order of a rank that has the two stages r and 2 p - 1 - r of a V, by
// counting: each call takes the next microbatch of its kind.
#pragma once

#include <array>
#include <deque>

#include "plan/schedules/order.h"

namespace torchtitan::plan::schedules {

class VOrder {
 public:
  VOrder(int64_t num_ranks, int64_t rank) : stages_{rank, 2 * num_ranks - 1 - rank} {}

  // `chunk` 0: the stage on the way down the ranks, 1: on the way back.
  void forward(int chunk) { add(StageWork::kForward, chunk, forwards_[chunk]++); }

  void backward(int chunk) { add(StageWork::kBackward, chunk, backwards_[chunk]++); }

  // Its backward of weights is left for later.
  void backward_input(int chunk) {
    const int64_t microbatch = backwards_[chunk]++;
    add(StageWork::kBackwardInput, chunk, microbatch);
    waiting_.push_back({StageWork::kBackwardWeight, stages_[chunk], microbatch});
  }

  // The one that waits longest, if there is one.
  void backward_weight() {
    if (waiting_.empty()) return;
    order_.push_back(waiting_.front());
    waiting_.pop_front();
  }

  // The one of this chunk that waits longest, if there is one.
  void backward_weight(int chunk) {
    for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
      if (it->stage != stages_[chunk]) continue;
      order_.push_back(*it);
      waiting_.erase(it);
      return;
    }
  }

  // A forward and a backward that run together.
  void forward_with_backward(int forward_chunk, int backward_chunk) {
    forward(forward_chunk);
    order_.back().overlaps_next = true;
    backward(backward_chunk);
  }

  int64_t num_forwards(int chunk) const { return forwards_[chunk]; }
  bool has_waiting() const { return !waiting_.empty(); }
  const RankOrder& order() const { return order_; }

 private:
  void add(StageWork work, int chunk, int64_t microbatch) {
    order_.push_back({work, stages_[chunk], microbatch});
  }

  std::array<int64_t, 2> stages_;
  std::array<int64_t, 2> forwards_{0, 0};
  std::array<int64_t, 2> backwards_{0, 0};
  std::deque<StageAction> waiting_;
  RankOrder order_;
};

}  // namespace torchtitan::plan::schedules
