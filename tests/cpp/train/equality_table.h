// What the tests of equality have measured, written as Markdown into the file that the
// environment variable TORCHTITAN_EQUALITY_TABLE names, if any, when all tests are
// over.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "train/differences.h"
#include "train/matrix.h"

namespace torchtitan::train::testing {

void record_cell(const MatrixCell& cell, const RelativeErrors& errors);

// A step in which one thing was wrong.
struct Mutant {
  std::string mistake;
  std::string layout;
  bool noticed;
  // Where it changes no number: which call of the collective it was, from 0.
  std::optional<int64_t> harmless_call = std::nullopt;
};
void record_mutant(const Mutant& mutant);

}  // namespace torchtitan::train::testing
