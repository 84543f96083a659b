// One file of token ids: a run of whole documents, already tokenized.
//
//   64 bytes   header: magic, version, bytes per token, counts, checksums (little
//   endian) note       bytes that the writer chose (where the next run of documents
//   begins) padding    to a multiple of 64 tokens     num_tokens unsigned integers of
//   token_bytes (2 or 4) bytes each
//
// A file appears under its name whole or not at all: it is written beside it and
// renamed. Nothing is fsynced: after a power failure the checksums tell, and the file
// is made anew.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace torchtitan::data {

// A token file that is not what a writer left: wrong size, checksum, magic or version.
class DamagedShard : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Collects the ids of documents and writes them as one file. Not thread-safe.
class TokenShardWriter {
 public:
  // Ids must be below `vocab_size`; it also decides how wide the tokens are stored.
  explicit TokenShardWriter(int64_t vocab_size);

  // Adds the ids of one document. Throws std::invalid_argument, naming `place` and the
  // token's position, for an id that is negative or not below vocab_size.
  void append(std::span<const int64_t> ids, std::string_view place);

  int64_t num_tokens() const { return static_cast<int64_t>(tokens_.size()); }

  // Writes the file and renames it to `path`, replacing one that is there. Throws
  // std::runtime_error with path and cause if the system refuses; nothing is left then.
  void write(const std::string& path, std::string_view note) const;

 private:
  int64_t vocab_size_;
  std::vector<uint32_t> tokens_;
};

// A token file mapped into memory, read-only. Safe to read from several threads.
class TokenShard {
 public:
  // Checks header, note and size, which costs the same for every size. Throws
  // DamagedShard, or std::runtime_error if the file cannot be opened.
  explicit TokenShard(const std::string& path);
  ~TokenShard();
  TokenShard(const TokenShard&) = delete;
  TokenShard& operator=(const TokenShard&) = delete;

  const std::string& path() const { return path_; }
  const std::string& note() const { return note_; }
  int64_t num_tokens() const { return num_tokens_; }

  // Reads all tokens and compares their checksum. Throws DamagedShard.
  void verify() const;

  // Copies tokens first ... first + out.size() - 1; the range must be inside.
  void copy(int64_t first, std::span<int64_t> out) const;

 private:
  void check_header();

  std::string path_;
  std::string note_;
  int64_t num_tokens_ = 0;
  int64_t token_bytes_ = 0;
  uint64_t token_checksum_ = 0;
  const uint8_t* file_ = nullptr;
  size_t file_bytes_ = 0;
  const uint8_t* tokens_ = nullptr;
};

}  // namespace torchtitan::data
