// A group whose other ranks do not exist, for dry runs of one rank of many. Every verb
// is complete at once, on meta tensors too. Outputs are defined, as if all ranks held
// what this one holds but sums kept one summand: all_gather repeats `in`,
// reduce_scatter and all_to_all keep the own piece (other rows of all_to_all are zero),
// recv gives zeros.
#pragma once

#include <cstdint>
#include <string>

#include "collectives/group.h"

namespace torchtitan::collectives {

// The identity when size is 1. Throws c10::ValueError unless 0 <= rank < size.
Group fake_group(std::string name, int64_t rank, int64_t size);

}  // namespace torchtitan::collectives
