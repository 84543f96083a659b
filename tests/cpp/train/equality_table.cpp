#include "train/equality_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <map>
#include <set>
#include <vector>

namespace torchtitan::train::testing {
namespace {

struct Row {
  std::string words;
  int64_t ranks;
  RelativeErrors errors;
};

// Of one mistake.
struct Tally {
  std::set<std::string> layouts;
  int64_t tried = 0;
  int64_t noticed = 0;
  std::vector<std::string> harmless;
};

struct Records {
  std::map<int64_t, Row> cells;          // by number
  std::map<std::string, Tally> mutants;  // by mistake
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

template <class Range>
std::string joined(const Range& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

void write_mutants(std::ostream& out) {
  int64_t tried = 0, noticed = 0;
  size_t harmless = 0;
  for (const auto& [mistake, tally] : records().mutants) {
    tried += tally.tried;
    noticed += tally.noticed;
    harmless += tally.harmless.size();
  }
  out << "\n## Mutants\n\n"
      << records().mutants.size() << " mistakes in " << tried << " steps, of which "
      << noticed
      << " are noticed. A collective is left out (each rank keeps its own part), a "
         "message is zeros, a sum is an average, each in one call after another; other "
         "mistakes are in every call. The "
      << harmless
      << " steps without effect change no number: what they gather or reduce is not "
         "read.\n\n"
      << "| mistake | layouts | steps | noticed | without effect |\n"
      << "| :-- | :-- | --: | --: | :-- |\n";
  for (const auto& [mistake, tally] : records().mutants) {
    out << "| " << mistake << " | " << joined(tally.layouts) << " | " << tally.tried
        << " | " << tally.noticed << " | " << joined(tally.harmless) << " |\n";
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

void record_mutant(const Mutant& mutant) {
  auto& tally = records().mutants[mutant.mistake];
  tally.layouts.insert(mutant.layout);
  ++tally.tried;
  tally.noticed += mutant.noticed ? 1 : 0;
  if (mutant.harmless_call) {
    tally.harmless.push_back(mutant.layout + " call " +
                             std::to_string(*mutant.harmless_call));
  }
}

}  // namespace torchtitan::train::testing
