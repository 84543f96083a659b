// How the tokens of a sequence are dealt out among the ranks that share it, so that all
// of them have the same number of tokens and about the same work.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace torchtitan::parallel::context {

enum class Balance {
  // Two chunks a rank, one from the head of the sequence and its mirror image from the
  // tail: causal work is the same for all.
  kHeadTail,
  kInOrder,  // one stretch a rank
  // Blocks of queries, most work under the mask first, dealt out round and back
  // ("ptrr" of PyTorch). All rows of a batch are dealt out alike, by the sum of their
  // work.
  kByWork,
};

// Of "headtail", "none" or "ptrr"; throws ValueError for another name.
Balance parse_balance(const std::string& name);

// Positions [ranks, tokens] int64, rising along each row, of every rank's tokens in
// sequences of ranks * tokens; on the device of the starts, or of `device` without.
//   document_starts  [B, ranks * tokens] int64 by position, or undefined; only kByWork
//                    reads them. On meta only shapes are given.
// Throws ValueError where the balance cannot deal out so many tokens.
at::Tensor deal_out(Balance balance, int64_t ranks, int64_t tokens,
                    const at::Tensor& document_starts, at::Device device);

}  // namespace torchtitan::parallel::context
