// What a fuzz target calls when something that must hold does not.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace torchtitan::fuzz {

// Ends the process with a core, which libFuzzer and replay.cpp both take for a finding.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

}  // namespace torchtitan::fuzz
