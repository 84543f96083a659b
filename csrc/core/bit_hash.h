// A hash of the bits of tensors, to compare copies on different ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace torchtitan::core {

// One int64 for each tensor, as a tensor [n] on the CPU. Tensors of any dtype and
// shape; those with equal bytes in row-major order have equal hashes, and those that
// differ in one 4-byte word have different ones for certain. Values depend on the kind
// of device, not on the number of threads. Reads each byte once; waits for the device.
at::Tensor hash_bits(const std::vector<at::Tensor>& tensors);

// The same by torch's operators, as done for tensors that are not on the CPU. Its
// values are others than those above.
at::Tensor hash_bits_by_operators(const std::vector<at::Tensor>& tensors);

}  // namespace torchtitan::core
