// Flipped bits and truncated files, one at a time.
#pragma once

#include <cstdint>
#include <string>

namespace torchtitan::durability {

// Damages the newest of two checkpoints in `folder` and loads, again and again: bits of
// data, of headers of shards, of manifests and their checksums; and lengths of files.
// Prints one line of JSON. The same seed makes the same damage.
//   returns  whether every damage was found before a tensor was read and the older
//            checkpoint loaded instead
bool run_corruption(const std::string& folder, int64_t num_flips,
                    int64_t num_truncations, uint64_t seed);

}  // namespace torchtitan::durability
