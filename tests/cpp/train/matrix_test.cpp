// Layouts in which every pair of parallelisms and options that can be combined occurs
// give the loss and all gradients of plain autograd over one process.
#include "train/matrix.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "train/differences.h"
#include "train/equality_table.h"

namespace torchtitan::train::testing {
namespace {

class MatrixCellTest : public ::testing::TestWithParam<MatrixCell> {
 protected:
  static RelativeErrors expect_equal_training() {
    const auto& cell = GetParam();
    const auto result = run_step(cell.problem, cell.layout);
    const auto reference = run_reference(cell.problem);
    EXPECT_EQ(difference(result, reference), "") << cell;
    return relative_errors(result, reference);
  }
};

class EqualityMatrix : public MatrixCellTest {};
TEST_P(EqualityMatrix, EqualsPlainAutogradOverThreeSteps) { expect_equal_training(); }

class EqualityMatrixSlow : public MatrixCellTest {};
TEST_P(EqualityMatrixSlow, EqualsPlainAutogradOverThreeSteps) {
  record_cell(GetParam(), expect_equal_training());
}

const auto name = [](const auto& info) {
  return "Cell" + std::to_string(info.param.number);
};
INSTANTIATE_TEST_SUITE_P(Quick, EqualityMatrix, ::testing::ValuesIn(matrix().quick),
                         name);
INSTANTIATE_TEST_SUITE_P(All, EqualityMatrixSlow, ::testing::ValuesIn(matrix().cells),
                         name);

TEST(Matrix, CoversEveryPairThatCanBeCombined) {
  EXPECT_GE(matrix().cells.size(), 120u);
  EXPECT_GT(matrix().num_possible_pairs, 1000);
  EXPECT_EQ(matrix().num_covered_pairs, matrix().num_possible_pairs);
  EXPECT_GE(matrix().num_python_cells, 15);
  std::cout << matrix().cells.size() << " cells of C++ and "
            << matrix().num_python_cells << " of Python cover "
            << matrix().num_covered_pairs << " of " << matrix().num_possible_pairs
            << " pairs, " << matrix().quick.size() << " quick ones "
            << matrix().num_quick_pairs << "\n";
  for (const auto& cell : matrix().cells) {
    EXPECT_LE(cell.layout.num_ranks(), 8) << cell;
  }
}

// TORCHTITAN_EQUALITY_CELLS=1 writes it anew.
TEST(Matrix, ItsTableOfCellsIsTheOneThatPythonReads) {
  const std::string path = TORCHTITAN_TESTS_FOLDER "/equality_cells.csv";
  if (std::getenv("TORCHTITAN_EQUALITY_CELLS") != nullptr) {
    std::ofstream(path) << matrix().table;
  }
  std::stringstream written;
  written << std::ifstream(path).rdbuf();
  EXPECT_EQ(written.str(), matrix().table);
}

}  // namespace
}  // namespace torchtitan::train::testing
