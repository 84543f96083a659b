// The arithmetic of local threads: what an operation does once all ranks have started
// it.
#pragma once

#include <span>

#include "collectives/backend.h"

namespace torchtitan::collectives {

// `operations` are those of all ranks in rank order, of one verb other than send, recv
// and barrier. Runs in the calling thread, on its current stream.
void execute_collective(std::span<const Operation> operations);

// out = in[0] + in[1] + ... in this order; 16-bit types are added in float32 and
// rounded once. `out` may be in[0]. All have one numel; those on other devices are
// fetched.
void sum_in_order(const at::Tensor& out, std::span<const at::Tensor> in);

}  // namespace torchtitan::collectives
