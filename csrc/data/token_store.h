// A growing sequence of tokens in several files, and the rows of a batch read from it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "data/token_shard.h"

namespace torchtitan::data {

// What stands behind the last token.
enum class AtEnd {
  kMore,    // tokens that are not attached yet: reading them is an error
  kRepeat,  // the first token again, endlessly
  kStop,    // nothing: rows that do not fit wholly are ignored rows
};

// Rows of one microbatch. Row i is sample first_sample + i, and sample k covers the
// tokens k * seq_len ... k * seq_len + seq_len of the sequence: the last label of a
// sample is the first input of the next.
struct RowRequest {
  int64_t first_sample;
  int64_t num_rows;
  int64_t seq_len;
  int64_t vocab_size;  // every id must be below
  AtEnd at_end;
};

struct TokenBatch {
  at::Tensor input;   // int64 [num_rows, seq_len]; zeros in ignored rows
  at::Tensor labels;  // int64 [num_rows, seq_len]; -100 in ignored rows
};

// Safe to use from several threads: one may attach while another gathers.
class TokenStore {
 public:
  // Appends a file; returns its note. Its tokens are verified when first gathered.
  // Throws DamagedShard, or std::runtime_error if the file cannot be opened.
  std::string attach(const std::string& path);

  // Forgets the files from number `num_shards` on.
  void truncate(int64_t num_shards);

  int64_t num_shards() const;
  int64_t num_tokens() const;

  // The file that holds token `position`; num_shards() if it is behind the last.
  int64_t shard_of(int64_t position) const;

  // Reads every token to find the first file whose checksum is wrong; num_shards() if
  // there is none.
  int64_t first_damaged() const;

  // Reads rows. Throws std::invalid_argument for a bad request, for a token that is not
  // attached, and for an id >= vocab_size (naming the sample); DamagedShard for a file
  // whose tokens changed on disk.
  TokenBatch gather(const RowRequest& request) const;

 private:
  struct Entry {
    std::shared_ptr<const TokenShard> shard;
    int64_t first_token;
    std::shared_ptr<std::once_flag> verified;
  };
  std::vector<Entry> entries() const;

  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
};

// Checks a batch from any loader: inputs in [0, vocab_size), labels there or -100.
//   input, labels  int64 of the same shape, on the CPU
// Throws std::invalid_argument naming row and position.
void check_token_ids(const at::Tensor& input, const at::Tensor& labels,
                     int64_t vocab_size);

}  // namespace torchtitan::data
