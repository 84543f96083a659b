// Activation checkpointing (Chen et al. 2016): which segments keep only their inputs
// and run forward again before their backward.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace torchtitan::parallel::activation_checkpoint {

struct Policy {
  enum class Mode {
    kNone,
    kFull,       // every block
    kSelective,  // every n-th block: the n-th, the 2n-th, ...
  };
  Mode mode;
  int64_t every;  // n of kSelective, at least 1
};

// Blocks are the segments whose names begin with "layers."; others never recompute.
// Throws ValueError for an n below 1.
std::vector<bool> select(const std::vector<std::string>& segment_names,
                         const Policy& policy);

}  // namespace torchtitan::parallel::activation_checkpoint
