// Activation checkpointing (Chen et al. 2016): which segments run forward again before
// their backward, and what they keep until then beside their inputs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nn/model.h"

namespace torchtitan::parallel::activation_checkpoint {

struct Policy {
  enum class Mode {
    kNone,
    kFull,          // every block, keeping nothing
    kSelective,     // every n-th block: the n-th, the 2n-th, ...
    kPerOperation,  // every block; see per_operation.h
    kMemoryBudget,  // see memory_budget.h
  };
  Mode mode;
  int64_t every = 1;  // n of kSelective, at least 1
  // Of kPerOperation: parts of names of linear modules, of whose products none is kept.
  std::vector<std::string> recomputed_modules = {};
  // Of kMemoryBudget: the share of the bytes of all operations that may be kept, and
  // one microbatch.
  double budget = 1.0;
  nn::BatchShape batch = {};
};

// Blocks are the segments whose names begin with "layers."; others never recompute.
// Throws ValueError for an n below 1.
std::vector<bool> select(const std::vector<std::string>& segment_names,
                         const Policy& policy);

// One way to keep less: bytes kept over a microbatch and flops of computing the rest
// again.
struct Cost {
  int64_t bytes;
  int64_t flops;

  bool operator==(const Cost&) const = default;
};

struct Choice {
  std::vector<bool> recompute;  // by segment
  // Of kMemoryBudget: every cost that no other one beats in both, bytes rising, and the
  // chosen one.
  std::vector<Cost> curve = {};
  Cost chosen = {};
};

// Chooses for a model and tells its segments what to keep (Segment::keep()).
// Throws ValueError for an n below 1, a budget outside of [0, 1], a name that is part
// of a module that is no linear one, and a budget for blocks whose operations are not
// known.
Choice choose(const nn::Model& model, const Policy& policy);

}  // namespace torchtitan::parallel::activation_checkpoint
