// A state of which every number is known, written by four ranks as one checkpoint.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "storage/commit.h"

namespace torchtitan::durability {

inline constexpr int64_t kNumRanks = 4;

// Numbers, int64, of the rank's file: 12 kB, but of one rank at every 16th step two
// hashed blocks and a part of a third one.
int64_t numbers_of(int64_t step, int64_t rank);

// Writes the rank's part of the state at `step` into a staging folder, durable.
storage::FileRecord write_part(const std::string& staging, int64_t rank, int64_t step);

// Of files that write_part() has written, by rank.
storage::Manifest manifest_of(int64_t step, const std::string& id,
                              const std::string& parent, int64_t sequence,
                              const std::vector<storage::FileRecord>& files);

// Reads the rank's part of the tensor, as the loads of runs do: compared with its
// SHA-256 while it is read. Throws std::invalid_argument or FileError.
//   returns  whether the numbers are those of the manifest's step
bool load_part(const std::string& path, const storage::Manifest& manifest,
               int64_t rank);

}  // namespace torchtitan::durability
