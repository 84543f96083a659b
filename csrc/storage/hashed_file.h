// A new file whose bytes are hashed while they are written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "storage/checksum.h"
#include "storage/file.h"

namespace torchtitan::storage {

// Every method throws FileError. Not for two threads at once.
class HashedFile {
 public:
  // Refuses an existing one.
  explicit HashedFile(const std::string& path) : file_(File::create(path)) {}

  const std::string& path() const { return file_.path(); }
  int64_t num_bytes() const { return num_bytes_; }

  // Appends. Of large data another thread makes the SHA-256 meanwhile: it takes about
  // as long as writing into memory.
  void write(std::span<const std::byte> data);

  // The same; returns the CRC-32 of `data`.
  uint32_t write_with_crc(std::span<const std::byte> data);

  // Size and SHA-256 once the file is durable. Its name is left for the folder's, which
  // the caller syncs.
  FileRecord finish();

 private:
  File file_;
  Sha256 hash_;
  int64_t num_bytes_ = 0;
};

}  // namespace torchtitan::storage
