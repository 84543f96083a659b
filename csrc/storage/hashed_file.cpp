#include "storage/hashed_file.h"

#include <algorithm>

#include "storage/checksum.h"
#include "storage/crc32.h"
#include "storage/parallel_for.h"

namespace torchtitan::storage {

uint32_t HashedFile::write_with_crc(std::span<const std::byte> data) {
  uint32_t crc = 0;
  append(data, &crc);
  return crc;
}

void HashedFile::append(std::span<const std::byte> data, uint32_t* crc) {
  const auto keep = [&](size_t size) {
    const auto part = data.first(std::min(size, data.size()));
    if (crc != nullptr) *crc = crc32(part, *crc);
    if (pending_.capacity() == 0) pending_.reserve(kHashedBlockBytes);
    pending_.insert(pending_.end(), part.begin(), part.end());
    data = data.subspan(part.size());
  };
  if (!pending_.empty()) {
    keep(kHashedBlockBytes - pending_.size());
    if (pending_.size() < kHashedBlockBytes) return;
  }
  std::vector<std::span<const std::byte>> blocks;
  const size_t num_kept = pending_.empty() ? 0 : 1;
  if (num_kept > 0) blocks.push_back(pending_);
  for (; data.size() >= kHashedBlockBytes; data = data.subspan(kHashedBlockBytes)) {
    blocks.push_back(data.first(kHashedBlockBytes));
  }
  std::vector<uint32_t> crcs(crc == nullptr ? 0 : blocks.size());
  put(blocks, crcs);
  for (size_t i = num_kept; i < crcs.size(); ++i) {
    *crc = crc32_of_both(*crc, crcs[i], kHashedBlockBytes);
  }
  pending_.clear();
  keep(data.size());
}

void HashedFile::put(std::span<const std::span<const std::byte>> blocks,
                     std::span<uint32_t> crcs) {
  std::vector<std::string> hashes(blocks.size());
  // What is read three times should be in the cache the other times.
  parallel_for(blocks.size(), num_threads_, [&](size_t i) {
    if (!crcs.empty()) crcs[i] = crc32(blocks[i]);
    hashes[i] = block_sha256(blocks[i]);
    const int64_t offset = num_put_ + static_cast<int64_t>(i * kHashedBlockBytes);
    file_.write_at(offset, blocks[i]);
    file_.begin_sync(offset, blocks[i].size());
  });
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks_ += hashes[i];
    num_put_ += static_cast<int64_t>(blocks[i].size());
  }
}

FileRecord HashedFile::finish() {
  if (!pending_.empty()) {
    const std::span<const std::byte> last = pending_;
    put(std::span(&last, 1), {});
    pending_.clear();
  }
  file_.sync();
  const std::string& path = file_.path();
  return {.name = path.substr(path.rfind('/') + 1),
          .size_bytes = num_put_,
          .sha256 = sha256(std::as_bytes(std::span(blocks_))),
          .blocks = blocks_};
}

}  // namespace torchtitan::storage
