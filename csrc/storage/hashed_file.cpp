#include "storage/hashed_file.h"

#include <algorithm>
#include <cstring>

#include "storage/checksum.h"
#include "storage/crc32.h"

namespace torchtitan::storage {
namespace {

// What threads have of the caller's memory is done with before the caller goes on, be
// it with an exception.
struct WaitAtEnd {
  BlockWriter& writer;
  bool is_needed = false;
  ~WaitAtEnd() {
    if (is_needed) writer.wait();
  }
};

}  // namespace

uint32_t HashedFile::write_with_crc(std::span<const std::byte> data) {
  uint32_t crc = 0;
  append(data, &crc);
  return crc;
}

void HashedFile::append(std::span<const std::byte> data, uint32_t* crc) {
  num_bytes_ += static_cast<int64_t>(data.size());
  {
    WaitAtEnd borrowed{writer_};
    while (!data.empty()) {
      const auto part =
          data.first(std::min(kHashedBlockBytes - num_begun_, data.size()));
      if (part.size() == kHashedBlockBytes && !writer_.takes_buffers_only()) {
        borrowed.is_needed = true;
        writer_.put(part);
      } else {
        keep(part);
      }
      // While the threads work.
      if (crc != nullptr) *crc = crc32(part, *crc);
      data = data.subspan(part.size());
    }
  }
  writer_.check();
}

void HashedFile::keep(std::span<const std::byte> part) {
  if (begun_ == nullptr) begun_ = writer_.take_buffer();
  std::memcpy(begun_.get() + num_begun_, part.data(), part.size());
  num_begun_ += part.size();
  if (num_begun_ < kHashedBlockBytes) return;
  num_begun_ = 0;
  writer_.put(std::move(begun_));
}

FileRecord HashedFile::finish() {
  const std::string blocks = writer_.finish({begun_.get(), num_begun_});
  file_.sync();
  const std::string& path = file_.path();
  return {.name = path.substr(path.rfind('/') + 1),
          .size_bytes = num_bytes_,
          .sha256 = sha256(std::as_bytes(std::span(blocks))),
          .blocks = blocks};
}

}  // namespace torchtitan::storage
