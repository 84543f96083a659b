#include "data/row_mapping.h"

#include "base/checked_math.h"
#include "base/errors.h"

namespace torchtitan::data {

using base::check_value;

void check_row_mapping(const RowMapping& mapping) {
  check_value(mapping.global_batch_size > 0 && mapping.local_batch_size > 0 &&
                  mapping.num_ranks > 0,
              "row mapping: expected positive sizes, got global_batch_size ",
              mapping.global_batch_size, ", local_batch_size ",
              mapping.local_batch_size, ", num_ranks ", mapping.num_ranks);
  check_value(mapping.rank >= 0 && mapping.rank < mapping.num_ranks,
              "row mapping: expected 0 <= rank < ", mapping.num_ranks, ", got rank ",
              mapping.rank);
  const int64_t rows = base::checked_mul(mapping.local_batch_size, mapping.num_ranks);
  check_value(mapping.global_batch_size % rows == 0, "global_batch_size ",
              mapping.global_batch_size, " is not a multiple of local_batch_size ",
              mapping.local_batch_size, " x ", mapping.num_ranks,
              " data-parallel ranks = ", rows);
}

int64_t num_microbatches(const RowMapping& mapping) {
  check_row_mapping(mapping);
  return mapping.global_batch_size / (mapping.local_batch_size * mapping.num_ranks);
}

int64_t first_row(const RowMapping& mapping, int64_t microbatch) {
  const int64_t count = num_microbatches(mapping);
  check_value(microbatch >= 0 && microbatch < count,
              "row mapping: expected 0 <= microbatch < ", count, ", got ", microbatch);
  return (microbatch * mapping.num_ranks + mapping.rank) * mapping.local_batch_size;
}

}  // namespace torchtitan::data
