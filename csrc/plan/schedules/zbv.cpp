#include "plan/schedules/zbv.h"

#include <algorithm>

#include "plan/schedules/v_order.h"

namespace torchtitan::plan::schedules {
namespace {

void whole_backward(VOrder& order, int chunk) {
  // Two halves: the gradient of the inputs is on its way during the second.
  order.backward_input(chunk);
  order.backward_weight(chunk);
}

// For num_microbatches >= 2 p - 1.
RankOrder order_of_rank(int64_t num_ranks, int64_t rank, int64_t num_microbatches) {
  VOrder order(num_ranks, rank);
  // Fill the V: its first microbatch comes back when 2 (p - r) - 1 have gone down.
  for (int64_t i = 0; i < 2 * (num_ranks - rank) - 1; ++i) order.forward(0);
  for (int64_t i = 0; i < rank; ++i) {
    order.forward(1);
    order.forward(0);
  }
  for (int64_t i = 0; i < num_ranks - rank; ++i) {
    order.forward(1);
    whole_backward(order, 1);
  }
  // Steady: forward, both halves of backward, on each chunk in turn.
  while (order.num_forwards(1) < num_microbatches) {
    if (order.num_forwards(0) < num_microbatches) order.forward(0);
    whole_backward(order, 0);
    order.forward(1);
    whole_backward(order, 1);
  }
  // Empty the V: first what others wait for.
  for (int64_t i = 0; i < rank; ++i) {
    order.backward_input(0);
    order.backward_input(1);
  }
  for (int64_t i = 0; i < num_ranks - rank; ++i) {
    order.backward_input(0);
    order.backward_weight(0);
  }
  for (int64_t i = 0; i < rank; ++i) order.backward_weight(1);
  while (order.has_waiting()) order.backward_weight(0);
  return order.order();
}

}  // namespace

Schedule zbv_zero_bubble(int64_t num_ranks, int64_t num_microbatches) {
  Schedule schedule{v_of_stages(num_ranks), num_microbatches, {}};
  const int64_t full = std::max(num_microbatches, 2 * num_ranks - 1);
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    schedule.ranks.push_back(
        keep_microbatches(order_of_rank(num_ranks, rank, full), num_microbatches));
  }
  return schedule;
}

}  // namespace torchtitan::plan::schedules
