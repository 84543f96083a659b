// Safetensors files: a reader that copies any box of a tensor into given memory, and a
// writer that streams tensors to a new file and makes it durable.
//
// Data are read by pread: a file that shrinks while it is read is an error, not a
// signal. Neither class may be used by two threads at once, but several readers may
// share a file.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "storage/box.h"
#include "storage/file.h"
#include "storage/hashed_file.h"
#include "storage/safetensors.h"
#include "storage/verified_file.h"

namespace torchtitan::storage {

class SafetensorsReader {
 public:
  // Reads and checks the header; throws std::invalid_argument or FileError.
  explicit SafetensorsReader(const std::string& path)
      : SafetensorsReader(VerifiedFile(path, "", 1)) {}
  explicit SafetensorsReader(VerifiedFile file);

  const SafetensorsHeader& header() const { return header_; }

  // Throws std::invalid_argument when the file has no such tensor.
  const SafetensorsHeader::Entry& entry(const std::string& name) const;

  // Where a box goes: row-major memory of a tensor of this shape and of the stored
  // dtype, the box starting at `offset` in it.
  struct Destination {
    std::span<std::byte> memory;
    std::vector<int64_t> shape;
    std::vector<int64_t> offset;
  };

  // Copies the box of the stored tensor. Bytes of the destination outside the box are
  // not touched. An empty box copies nothing.
  void read_box(const std::string& name, const Box& box,
                const Destination& destination) const;

 private:
  mutable VerifiedFile file_;  // reading keeps blocks
  int64_t data_start_ = 0;
  SafetensorsHeader header_;
  std::unordered_map<std::string, size_t> index_;
};

class SafetensorsWriter {
 public:
  // Creates the file (it must not exist) and writes the header. Tensors whose dtype is
  // wider should come first, so that all of them are aligned.
  // At most num_threads threads hash and write.
  SafetensorsWriter(const std::string& path, std::vector<TensorSpec> tensors,
                    const std::map<std::string, std::string>& metadata,
                    int64_t num_threads);

  // The data of the next tensor in order; throws std::invalid_argument unless it is
  // `name` with exactly its bytes.
  void append(const std::string& name, std::span<const std::byte> data);

  // Throws std::invalid_argument if tensors are missing. Returns size and SHA-256 once
  // the file is durable; its name is left for its folder's, which the caller syncs.
  FileRecord finish();

 private:
  HashedFile file_;
  std::vector<TensorSpec> tensors_;
  size_t next_ = 0;
};

}  // namespace torchtitan::storage
