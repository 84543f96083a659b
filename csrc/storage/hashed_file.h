// A new file whose bytes are hashed while they are written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "storage/file.h"

namespace torchtitan::storage {

// Every method throws FileError. Not for two threads at once.
class HashedFile {
 public:
  // Refuses an existing one. At most num_threads threads hash and write large data, the
  // caller's included.
  HashedFile(const std::string& path, int64_t num_threads)
      : file_(File::create(path)), num_threads_(num_threads) {}

  const std::string& path() const { return file_.path(); }
  int64_t num_bytes() const { return num_put_ + static_cast<int64_t>(pending_.size()); }

  // Appends. A begun block is kept until it is whole.
  void write(std::span<const std::byte> data) { append(data, nullptr); }

  // The same; returns the CRC-32 of `data`.
  uint32_t write_with_crc(std::span<const std::byte> data);

  // What a manifest says of the file, once it is durable. Its name is left for the
  // folder's, which the caller syncs.
  FileRecord finish();

 private:
  void append(std::span<const std::byte> data, uint32_t* crc);

  // Hashes and writes blocks, all whole but for the last one of the file. Leaves the
  // CRC-32 of each in `crcs` unless that is empty.
  void put(std::span<const std::span<const std::byte>> blocks,
           std::span<uint32_t> crcs);

  File file_;
  int64_t num_threads_;
  std::vector<std::byte> pending_;  // of the begun block
  std::string blocks_;              // FileRecord::blocks so far
  int64_t num_put_ = 0;             // bytes
};

}  // namespace torchtitan::storage
