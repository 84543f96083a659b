// Covering arrays: few choices of values for many factors, such that every pair of
// values of two factors that can occur together does (Cohen et al. 1997, "AETG").
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <utility>
#include <vector>

namespace torchtitan::train::testing {

// The index of a value by factor; kOpen where none is chosen yet.
using Cell = std::vector<int>;
inline constexpr int kOpen = -1;

// False where the values chosen so far cannot be together, whatever the open ones are.
using Rule = std::function<bool(const Cell& partial)>;

class CoveringArray {
 public:
  // The same cells for the same arguments, on every machine.
  CoveringArray(std::vector<int> num_values, Rule rule);

  // Pairs of values that occur together in any cell that the rule lets be.
  int64_t num_possible_pairs() const { return static_cast<int64_t>(possible_.size()); }
  int64_t num_covered_pairs(const std::vector<Cell>& cells) const;

  // Covers every possible pair, then begins again, until there are `least` cells.
  std::vector<Cell> cover(size_t least);
  // Up to `count` of the cells that cover most pairs together, one after another.
  std::vector<Cell> choose(const std::vector<Cell>& cells, size_t count) const;

 private:
  using Pair = std::pair<size_t, size_t>;  // of values, counted over all factors

  bool can_be(Cell& partial, size_t first_factor) const;
  size_t value_id(size_t factor, int value) const;
  size_t pair_id(size_t a, size_t b) const { return a * num_ids_ + b; }
  std::pair<size_t, int> factor_and_value(size_t id) const;
  // Pairs of the cell that `missing` has, of one factor's or of all.
  int64_t gain(const Cell& cell, size_t factor, const std::vector<bool>& missing) const;
  int64_t gain(const Cell& cell, const std::vector<bool>& missing) const;
  void mark(const Cell& cell, std::vector<bool>& missing) const;
  Cell candidate(const std::vector<bool>& missing);
  std::vector<bool> all_possible() const;

  std::vector<int> num_values_;
  Rule rule_;
  std::vector<size_t> first_id_;  // of each factor's values
  size_t num_ids_ = 0;
  std::vector<Pair> possible_;
  std::mt19937_64 random_{1};
};

}  // namespace torchtitan::train::testing
