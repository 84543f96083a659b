// How far a run is from the reference (train/tiny_llama.h).
#pragma once

#include <string>

#include "train/tiny_llama.h"

namespace torchtitan::train::testing {

// The first thing in which a result is not that of the reference; empty where it is:
// loss, norm and gradients to 1e-10 of the reference's 2-norm (1e-12 where that is 0),
// weights to 1e-9, replicas bit by bit.
std::string difference(const Result& result, const Result& reference);

// By how much a result is off, relative to the reference: gradients in the 2-norm of
// each tensor, absolute where that is 0, and the worst of all tensors.
struct RelativeErrors {
  double loss = 0;
  double grad_norm = 0;
  double gradient = 0;
};
RelativeErrors relative_errors(const Result& result, const Result& reference);

}  // namespace torchtitan::train::testing
