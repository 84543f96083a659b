// A copy of much memory that will not be read soon: the snapshot of a state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace torchtitan::storage {

struct Copied {
  std::span<std::byte> to;
  std::span<const std::byte> from;  // of the same size; does not overlap
};

// Copies all, on at most num_threads threads, the caller's included. Complete on
// return. On x86 it writes past the caches: the target's lines need not be read first,
// which is a third of the traffic of a plain copy, and what training has in its caches
// stays. Throws std::invalid_argument for different sizes.
void stream_copy(std::span<const Copied> copies, int64_t num_threads);

}  // namespace torchtitan::storage
