// What the tests of equality have measured, written as Markdown into the file that the
// environment variable TORCHTITAN_EQUALITY_TABLE names, if any, when all tests are
// over.
#pragma once

#include <cstdint>
#include <string>

#include "train/matrix.h"

namespace torchtitan::train::testing {

void record_cell(const MatrixCell& cell, const RelativeErrors& errors);

// Of one layout: steps in which one thing was wrong, those that were noticed, and those
// that change no number.
struct Mutants {
  int64_t tried = 0;
  int64_t killed = 0;
  int64_t without_effect = 0;
};
void record_mutants(const std::string& layout, const Mutants& mutants);

}  // namespace torchtitan::train::testing
