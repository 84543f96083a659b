#include "parallel/activation_checkpoint/memory_budget.h"

#include <algorithm>
#include <numeric>

#include "base/checked_math.h"
#include "base/errors.h"

namespace torchtitan::parallel::activation_checkpoint {
namespace {

constexpr int64_t kMostUnits = int64_t{1} << 18;

class Knapsack {
 public:
  Knapsack(const std::vector<Item>& items, int64_t unit, int64_t units)
      : items_(items), unit_(unit), units_(units),
        best_(static_cast<size_t>(units) + 1, 0) {
    for (const auto& item : items) {
      auto& taken = taken_.emplace_back(best_.size(), false);
      const auto size = static_cast<size_t>(size_of(item));
      for (size_t room = best_.size(); room-- > size;) {
        const int64_t with = best_[room - size] + item.flops;
        if (with <= best_[room]) continue;
        best_[room] = with;
        taken[room] = true;
      }
    }
  }

  std::vector<bool> kept_within(int64_t bytes) const {
    std::vector<bool> kept(items_.size(), false);
    auto room = static_cast<size_t>(std::min(units_, bytes / unit_));
    for (size_t i = items_.size(); i-- > 0;) {
      if (!taken_[i][room]) continue;
      kept[i] = true;
      room -= static_cast<size_t>(size_of(items_[i]));
    }
    return kept;
  }

  // Units of each number of bytes at which more flops are saved than with fewer.
  std::vector<int64_t> steps() const {
    std::vector<int64_t> rooms = {0};
    for (size_t room = 1; room < best_.size(); ++room) {
      if (best_[room] > best_[room - 1]) rooms.push_back(static_cast<int64_t>(room));
    }
    return rooms;
  }
  int64_t saved_flops(int64_t room) const { return best_[static_cast<size_t>(room)]; }

 private:
  int64_t size_of(const Item& item) const { return base::ceil_div(item.bytes, unit_); }

  const std::vector<Item>& items_;
  const int64_t unit_;
  const int64_t units_;
  std::vector<int64_t> best_;             // flops saved, by units of room
  std::vector<std::vector<bool>> taken_;  // by item and room
};

}  // namespace

Packing pack(const std::vector<Item>& items, double budget) {
  base::check_value(
      budget >= 0.0 && budget <= 1.0,
      "activation_checkpoint.memory_budget: expected a number from 0 to 1, "
      "found ",
      budget);
  Item all{0, 0};
  int64_t unit = 0;
  for (const auto& item : items) {
    all.bytes = base::checked_add(all.bytes, item.bytes);
    all.flops = base::checked_add(all.flops, item.flops);
    unit = std::gcd(unit, item.bytes);
  }
  Packing result;
  if (all.bytes == 0) {
    result.kept.assign(items.size(), true);
    return result;
  }
  int64_t units = all.bytes / unit;
  if (units > kMostUnits) {
    unit = base::ceil_div(all.bytes, kMostUnits);
    // As much as all rounded sizes need.
    units = base::ceil_div(all.bytes, unit) + static_cast<int64_t>(items.size());
  }
  const Knapsack knapsack(items, unit, units);
  for (const int64_t room : knapsack.steps()) {
    result.curve.push_back(
        {std::min(room * unit, all.bytes), all.flops - knapsack.saved_flops(room)});
  }
  const double allowed = budget * static_cast<double>(all.bytes);
  result.kept = budget == 1.0 ? std::vector<bool>(items.size(), true)
                              : knapsack.kept_within(static_cast<int64_t>(allowed));
  result.cost = {0, all.flops};
  for (size_t i = 0; i < items.size(); ++i) {
    if (!result.kept[i]) continue;
    result.cost.bytes += items[i].bytes;
    result.cost.flops -= items[i].flops;
  }
  return result;
}

}  // namespace torchtitan::parallel::activation_checkpoint
