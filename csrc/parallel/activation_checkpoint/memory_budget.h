// What to keep for the fewest flops of recomputation within a budget of bytes: a
// knapsack, solved exactly.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/activation_checkpoint/select.h"

namespace torchtitan::parallel::activation_checkpoint {

// One result that may be kept: its bytes and the flops that this saves.
struct Item {
  int64_t bytes;
  int64_t flops;
};

struct Packing {
  std::vector<bool> kept;  // by item
  Cost cost;               // of the kept bytes and of the flops of the others
  // Best cost for every number of bytes, without those that another one beats.
  std::vector<Cost> curve;
};

// Keeps at most `budget` of the sum of bytes. Exact where all sizes are multiples of a
// common unit of which the sum has at most 2^18; beyond that sizes are rounded up to
// such a unit.
// Throws ValueError for a budget outside of [0, 1].
Packing pack(const std::vector<Item>& items, double budget);

}  // namespace torchtitan::parallel::activation_checkpoint
