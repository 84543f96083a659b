// The equality matrix: layouts of every product of parallelisms with at most eight
// ranks, such that every pair of values that can be combined occurs.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "train/tiny_llama.h"

namespace torchtitan::train::testing {

struct MatrixCell {
  int64_t number;     // from 1
  std::string words;  // the layout and the problem
  Layout layout;
  Problem problem;
};
std::ostream& operator<<(std::ostream& out, const MatrixCell& cell);

struct Matrix {
  std::vector<MatrixCell> cells;  // of the model in C++
  std::vector<MatrixCell> quick;  // those of them that cover most pairs
  int64_t num_python_cells;
  int64_t num_possible_pairs;  // pairs of values that can be combined
  int64_t num_covered_pairs;   // by the cells of both
  int64_t num_quick_pairs;     // that the quick ones cover
  std::string table;           // all cells as CSV: the values of every factor
};

const Matrix& matrix();

}  // namespace torchtitan::train::testing
