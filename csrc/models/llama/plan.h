// How Llama 3 is divided for tensor parallelism.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "models/llama/args.h"
#include "parallel/tensor/split.h"

namespace torchtitan::models::llama {

// Heads and the feed-forward width are divided within a block: wq, wk, wv, w1, w3 by
// their outputs, wo and w2 by their inputs; embedding and head by the vocabulary, which
// may be uneven. Norms are whole on every rank.
std::span<const parallel::tensor::Rule> tensor_rules();

// Why the model cannot be divided among `ranks`, with the numbers that it can be
// divided among; empty if it can.
std::string tensor_parallel_misfit(const Args& args, int64_t ranks);

}  // namespace torchtitan::models::llama
