// Context parallelism: the ranks of a group share each sequence, and attention fetches
// what a rank lacks (nn/attention_kernel.h).
#pragma once

#include <memory>
#include <string>

#include "collectives/group.h"
#include "nn/attention_kernel.h"
#include "parallel/context/balance.h"

namespace torchtitan::parallel::context {

enum class Method {
  kAllGather,  // keys and values of all ranks at once, their gradients summed back
  kRing,     // around a ring, the next ones under way while these are used (Liu et al.
             // 2023); PyTorch calls it "alltoall"
  kUlysses,  // each rank gets all tokens of some heads (Jacobs et al. 2023); the ranks
             // must divide the key heads
};

// Of "allgather", "alltoall" or "ulysses"; throws ValueError for another name.
Method parse_method(const std::string& name);

// With a group of one rank: nn::local_attention().
std::shared_ptr<nn::AttentionKernel> attention(const collectives::Group& group,
                                               Method method, Balance balance);

}  // namespace torchtitan::parallel::context
