// A file whose bytes are compared with what the manifest says, block by block, while
// they are read: whoever gets them may use them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "storage/file.h"

namespace torchtitan::storage {

// Not for two threads at once.
class VerifiedFile {
 public:
  // `blocks` are those of its FileRecord; where it is empty nothing is compared. At
  // most num_threads threads, the caller's included, read and hash large ranges. Throws
  // FileError, or std::invalid_argument if the file has not as many blocks.
  VerifiedFile(const std::string& path, std::string blocks, int64_t num_threads);

  const std::string& path() const { return file_.path(); }
  int64_t size() const { return size_; }

  // Fills all of `out`. Throws FileError, or std::invalid_argument that names the block
  // that is not what was written; what `out` holds is undefined then. Reads whole
  // blocks: of the two read last in part only, a copy is kept.
  void read_at(int64_t offset, std::span<std::byte> out);

 private:
  struct Kept {
    int64_t block = -1;
    std::vector<std::byte> bytes;
  };

  // Reads the block into `out`, which has its size.
  void read_block(int64_t block, std::span<std::byte> out) const;
  const Kept& keep(int64_t block);

  File file_;
  int64_t size_;
  std::string blocks_;
  int64_t num_threads_;
  std::array<Kept, 2> kept_;  // the one used last first
};

}  // namespace torchtitan::storage
