#include "train/covering_array.h"

#include <algorithm>
#include <numeric>

namespace torchtitan::train::testing {

CoveringArray::CoveringArray(std::vector<int> num_values, Rule rule)
    : num_values_(std::move(num_values)), rule_(std::move(rule)) {
  for (const int count : num_values_) {
    first_id_.push_back(num_ids_);
    num_ids_ += static_cast<size_t>(count);
  }
  for (size_t a = 0; a < num_ids_; ++a) {
    for (size_t b = a + 1; b < num_ids_; ++b) {
      const auto [factor_a, value_a] = factor_and_value(a);
      const auto [factor_b, value_b] = factor_and_value(b);
      if (factor_a == factor_b) continue;
      Cell partial(num_values_.size(), kOpen);
      partial[factor_a] = value_a;
      partial[factor_b] = value_b;
      if (can_be(partial, 0)) possible_.push_back({a, b});
    }
  }
}

size_t CoveringArray::value_id(size_t factor, int value) const {
  return first_id_[factor] + static_cast<size_t>(value);
}

std::pair<size_t, int> CoveringArray::factor_and_value(size_t id) const {
  const auto behind = std::upper_bound(first_id_.begin(), first_id_.end(), id);
  const auto factor = static_cast<size_t>(behind - first_id_.begin()) - 1;
  return {factor, static_cast<int>(id - first_id_[factor])};
}

// Leaves `partial` as it was.
bool CoveringArray::can_be(Cell& partial, size_t first_factor) const {
  if (!rule_(partial)) return false;
  size_t factor = first_factor;
  while (factor < partial.size() && partial[factor] != kOpen) ++factor;
  if (factor == partial.size()) return true;
  bool found = false;
  for (int value = 0; value < num_values_[factor] && !found; ++value) {
    partial[factor] = value;
    found = can_be(partial, factor + 1);
  }
  partial[factor] = kOpen;
  return found;
}

int64_t CoveringArray::gain(const Cell& cell, size_t factor,
                            const std::vector<bool>& missing) const {
  const size_t own = value_id(factor, cell[factor]);
  int64_t count = 0;
  for (size_t other = 0; other < cell.size(); ++other) {
    if (other == factor || cell[other] == kOpen) continue;
    const size_t id = value_id(other, cell[other]);
    count += missing[pair_id(std::min(id, own), std::max(id, own))] ? 1 : 0;
  }
  return count;
}

int64_t CoveringArray::gain(const Cell& cell, const std::vector<bool>& missing) const {
  int64_t twice = 0;
  for (size_t factor = 0; factor < cell.size(); ++factor) {
    twice += gain(cell, factor, missing);
  }
  return twice / 2;
}

void CoveringArray::mark(const Cell& cell, std::vector<bool>& missing) const {
  for (size_t a = 0; a < cell.size(); ++a) {
    for (size_t b = a + 1; b < cell.size(); ++b) {
      missing[pair_id(value_id(a, cell[a]), value_id(b, cell[b]))] = false;
    }
  }
}

std::vector<bool> CoveringArray::all_possible() const {
  std::vector<bool> missing(num_ids_ * num_ids_, false);
  for (const auto& [a, b] : possible_) missing[pair_id(a, b)] = true;
  return missing;
}

// A missing pair, then factor after factor the value that covers most.
Cell CoveringArray::candidate(const std::vector<bool>& missing) {
  std::vector<Pair> open;
  for (const auto& pair : possible_) {
    if (missing[pair_id(pair.first, pair.second)]) open.push_back(pair);
  }
  const auto& [a, b] = open[random_() % open.size()];
  Cell cell(num_values_.size(), kOpen);
  for (const size_t id : {a, b}) {
    const auto [factor, value] = factor_and_value(id);
    cell[factor] = value;
  }
  std::vector<size_t> order(cell.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random_() % i]);
  }
  for (const size_t factor : order) {
    if (cell[factor] != kOpen) continue;
    int64_t most = -1;
    int best = kOpen;
    const auto count = static_cast<uint64_t>(num_values_[factor]);
    const uint64_t start = random_() % count;
    for (uint64_t i = 0; i < count; ++i) {
      cell[factor] = static_cast<int>((start + i) % count);
      const int64_t gained = gain(cell, factor, missing);
      if (gained <= most || !can_be(cell, 0)) continue;
      most = gained;
      best = cell[factor];
    }
    cell[factor] = best;
  }
  return cell;
}

std::vector<Cell> CoveringArray::cover(size_t least) {
  constexpr int kCandidates = 8;
  std::vector<Cell> cells;
  auto missing = all_possible();
  const auto is_missing = [&](const Pair& pair) {
    return missing[pair_id(pair.first, pair.second)];
  };
  for (bool first_time = true; first_time || cells.size() < least;) {
    Cell best;
    int64_t most = -1;
    for (int i = 0; i < kCandidates; ++i) {
      auto cell = candidate(missing);
      if (const int64_t gained = gain(cell, missing); gained > most) {
        most = gained;
        best = std::move(cell);
      }
    }
    mark(best, missing);
    cells.push_back(std::move(best));
    if (std::none_of(possible_.begin(), possible_.end(), is_missing)) {
      first_time = false;
      missing = all_possible();
    }
  }
  return cells;
}

std::vector<Cell> CoveringArray::choose(const std::vector<Cell>& cells,
                                        size_t count) const {
  std::vector<Cell> chosen;
  auto missing = all_possible();
  for (size_t i = 0; i < std::min(count, cells.size()); ++i) {
    const auto less = [&](const Cell& a, const Cell& b) {
      return gain(a, missing) < gain(b, missing);
    };
    chosen.push_back(*std::max_element(cells.begin(), cells.end(), less));
    mark(chosen.back(), missing);
  }
  return chosen;
}

int64_t CoveringArray::num_covered_pairs(const std::vector<Cell>& cells) const {
  auto missing = all_possible();
  for (const auto& cell : cells) mark(cell, missing);
  return std::count_if(possible_.begin(), possible_.end(), [&](const Pair& pair) {
    return !missing[pair_id(pair.first, pair.second)];
  });
}

}  // namespace torchtitan::train::testing
