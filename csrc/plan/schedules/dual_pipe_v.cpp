#include "plan/schedules/dual_pipe_v.h"

#include <algorithm>

#include "plan/schedules/v_order.h"

namespace torchtitan::plan::schedules {
namespace {

// The pipeline fills: forwards, then with the first backwards split, since nothing else
// could run while their inputs' gradients travel.
void fill(VOrder& order, int64_t num_ranks, int64_t rank) {
  for (int64_t i = 0; i < 2 * (num_ranks - 1 - rank); ++i) order.forward(0);
  for (int64_t i = 0; i < rank + 1; ++i) {
    order.forward(0);
    order.forward(1);
  }
  for (int64_t i = 0; i < num_ranks - 1 - rank; ++i) {
    order.backward_input(1);
    order.backward_weight();
    order.forward(1);
  }
}

// Full: each chunk's forward with the other's backward.
void run_full(VOrder& order, int64_t num_ranks, int64_t rank, int64_t num_pairs) {
  for (int64_t i = 0; i < num_pairs; ++i) {
    if (i == 0 && rank == num_ranks - 1) {
      order.forward(0);  // nothing to hide yet, and the others wait for this one
      order.backward(1);
    } else {
      order.forward_with_backward(0, 1);
    }
    order.forward_with_backward(1, 0);
  }
}

// It empties: the later half of the backwards is split, and the second halves fill what
// would be bubbles.
void empty(VOrder& order, int64_t num_ranks, int64_t rank) {
  for (int64_t i = 0; i < num_ranks - 1 - rank; ++i) {
    order.backward(1);
    order.forward_with_backward(1, 0);
  }
  const int64_t num_whole = rank + 1;  // of the 2 (rank + 1) backwards that come now
  for (int64_t i = 0; i < 2 * (rank + 1); ++i) {
    const int chunk = i % 2 == 0 ? 1 : 0;
    if (i < num_whole) {
      order.backward(chunk);
    } else {
      order.backward_input(chunk);
    }
  }
  for (int64_t i = 0; i < num_ranks - 1 - rank; ++i) {
    order.backward_weight();
    order.backward_input(0);
  }
  while (order.has_waiting()) order.backward_weight();
}

}  // namespace

Schedule dual_pipe_v(int64_t num_ranks, int64_t num_microbatches) {
  Schedule schedule{v_of_stages(num_ranks), num_microbatches, {}};
  const int64_t full = std::max(num_microbatches, 2 * num_ranks);
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    VOrder order(num_ranks, rank);
    fill(order, num_ranks, rank);
    run_full(order, num_ranks, rank, full - 2 * num_ranks + rank + 1);
    empty(order, num_ranks, rank);
    schedule.ranks.push_back(keep_microbatches(order.order(), num_microbatches));
  }
  return schedule;
}

}  // namespace torchtitan::plan::schedules
