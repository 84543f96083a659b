#include "train/equality_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <map>

namespace torchtitan::train::testing {
namespace {

struct Row {
  std::string words;
  int64_t ranks;
  RelativeErrors errors;
};

struct Records {
  std::map<int64_t, Row> cells;  // by number
  std::map<std::string, Mutants> mutants;
};

Records& records() {
  static auto* const all = new Records;
  return *all;
}

void write_cells(std::ostream& out) {
  const auto& cells = records().cells;
  RelativeErrors worst;
  for (const auto& [number, row] : cells) {
    worst.loss = std::max(worst.loss, row.errors.loss);
    worst.grad_norm = std::max(worst.grad_norm, row.errors.grad_norm);
    worst.gradient = std::max(worst.gradient, row.errors.gradient);
  }
  out << "## Cells\n\n"
      << cells.size() << " cells of local threads, and " << matrix().num_python_cells
      << " of a model in Python (equality_of_training.md), cover "
      << matrix().num_covered_pairs << " of the " << matrix().num_possible_pairs
      << " pairs of values that can be combined; the " << matrix().quick.size()
      << " of the quick suite cover " << matrix().num_quick_pairs
      << ". Three optimizer steps in float64; errors are those of the last step, "
         "relative to plain autograd over one process: of a gradient in the 2-norm of "
         "its tensor, the worst of all tensors. What several ranks hold is the same "
         "bit by bit.\n\n"
      << "Worst: loss " << worst.loss << ", gradient norm " << worst.grad_norm
      << ", gradient " << worst.gradient << "; allowed is 1e-10.\n\n"
      << "| cell | ranks | layout | loss | gradient norm | worst gradient |\n"
      << "| --: | --: | :-- | --: | --: | --: |\n";
  for (const auto& [number, row] : cells) {
    out << "| " << number << " | " << row.ranks << " | " << row.words << " | "
        << row.errors.loss << " | " << row.errors.grad_norm << " | "
        << row.errors.gradient << " |\n";
  }
}

void write_mutants(std::ostream& out) {
  Mutants all;
  for (const auto& [layout, mutants] : records().mutants) {
    all.tried += mutants.tried;
    all.killed += mutants.killed;
    all.without_effect += mutants.without_effect;
  }
  out << "\n## Mutants\n\n"
      << all.killed << " of " << all.tried
      << " steps with one mistake (a collective or message left out or zeroed, an "
         "average where a sum belongs, a wrong position or document) are noticed; the "
         "other "
      << all.without_effect
      << " are listed in the tests as without effect (what is gathered or reduced is "
         "not read).\n\n"
      << "| layout | mutants | noticed | without effect |\n"
      << "| :-- | --: | --: | --: |\n";
  for (const auto& [layout, mutants] : records().mutants) {
    out << "| " << layout << " | " << mutants.tried << " | " << mutants.killed << " | "
        << mutants.without_effect << " |\n";
  }
}

class TableWriter final : public ::testing::Environment {
 public:
  void TearDown() override {
    const char* const path = std::getenv("TORCHTITAN_EQUALITY_TABLE");
    if (path == nullptr) return;
    std::ofstream out(path);
    out << "# Equality of every layout with one process\n\n"
           "Written by\n\n"
           "    TORCHTITAN_EQUALITY_TABLE=tests/equality.md "
           "build/dev/tests/cpp/train_test "
           "--gtest_filter='*EqualityMatrixSlow*:Mutation*'\n\n"
        << std::scientific << std::setprecision(1);
    write_cells(out);
    write_mutants(out);
    EXPECT_TRUE(out.good()) << "cannot write " << path;
  }
};

const auto* const kWriter = ::testing::AddGlobalTestEnvironment(new TableWriter);

}  // namespace

void record_cell(const MatrixCell& cell, const RelativeErrors& errors) {
  records().cells[cell.number] = {cell.words, cell.layout.num_ranks(), errors};
}

void record_mutants(const std::string& layout, const Mutants& mutants) {
  auto& all = records().mutants[layout];
  all.tried += mutants.tried;
  all.killed += mutants.killed;
  all.without_effect += mutants.without_effect;
}

}  // namespace torchtitan::train::testing
