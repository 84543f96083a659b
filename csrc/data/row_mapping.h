// Which rows of the global batch a rank reads: the global order of samples.
//
// Step s of a run whose global batch has G rows covers the samples s * G ... s * G + G
// - 1 of the data, whatever the number of ranks. Microbatch a of rank r holds the rows
// (a * num_ranks + r) * local_batch_size and the local_batch_size - 1 that follow.
#pragma once

#include <cstdint>

namespace torchtitan::data {

struct RowMapping {
  int64_t global_batch_size;  // rows of one optimizer step, all ranks
  int64_t local_batch_size;   // rows of one microbatch of one rank
  int64_t num_ranks;          // ranks that read different rows (mesh axis "batch")
  int64_t rank;               // 0 <= rank < num_ranks
};

// Throws std::invalid_argument unless all sizes are positive, the rank is in range and
// local_batch_size * num_ranks divides global_batch_size.
void check_row_mapping(const RowMapping& mapping);

// Microbatches of one step. Checks the mapping.
int64_t num_microbatches(const RowMapping& mapping);

// First row of the global batch in microbatch `microbatch` of this rank. Checks the
// mapping; throws std::invalid_argument if 0 <= microbatch < num_microbatches is false.
int64_t first_row(const RowMapping& mapping, int64_t microbatch);

}  // namespace torchtitan::data
