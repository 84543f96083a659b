// A new file whose bytes are hashed while they are written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "storage/block_writer.h"
#include "storage/file.h"

namespace torchtitan::storage {

// Every method throws FileError. Not for two threads at once.
class HashedFile {
 public:
  // Refuses an existing one. num_threads threads hash large data, or one more.
  HashedFile(const std::string& path, int64_t num_threads)
      : file_(File::create(path)), writer_(file_, num_threads) {}

  const std::string& path() const { return file_.path(); }
  int64_t num_bytes() const { return num_bytes_; }

  // Appends. Errors of the file may come later, with another write or finish().
  void write(std::span<const std::byte> data) { append(data, nullptr); }

  // The same; returns the CRC-32 of `data`.
  uint32_t write_with_crc(std::span<const std::byte> data);

  // What a manifest says of the file, once it is durable. Its name is left for the
  // folder's, which the caller syncs.
  FileRecord finish();

 private:
  void append(std::span<const std::byte> data, uint32_t* crc);
  void keep(std::span<const std::byte> part);  // of the begun block

  File file_;
  BlockWriter writer_;
  BlockBuffer begun_;     // block
  size_t num_begun_ = 0;  // its bytes so far
  int64_t num_bytes_ = 0;
};

}  // namespace torchtitan::storage
