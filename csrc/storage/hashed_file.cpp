#include "storage/hashed_file.h"

#include <algorithm>
#include <future>

#include "storage/crc32.h"

namespace torchtitan::storage {
namespace {

// Below it a thread costs more than it saves.
constexpr size_t kLargeBytes = size_t{1} << 20;

// What is read a second time soon should still be in the cache.
constexpr size_t kChunkBytes = size_t{256} << 10;

// Calls `action` while another thread hashes the data, and waits for both.
template <class Action>
void hash_beside(Sha256& hash, std::span<const std::byte> data, const Action& action) {
  if (data.size() < kLargeBytes) {
    hash.update(data);
    action();
    return;
  }
  // Its destructor waits, should the action throw.
  const auto hashed = std::async(std::launch::async, [&] { hash.update(data); });
  action();
  hashed.wait();
}

}  // namespace

void HashedFile::write(std::span<const std::byte> data) {
  hash_beside(hash_, data, [&] { file_.write(data); });
  num_bytes_ += static_cast<int64_t>(data.size());
}

uint32_t HashedFile::write_with_crc(std::span<const std::byte> data) {
  uint32_t crc = 0;
  hash_beside(hash_, data, [&] {
    for (auto left = data; !left.empty();) {
      const auto chunk = left.first(std::min(kChunkBytes, left.size()));
      crc = crc32(chunk, crc);
      file_.write(chunk);
      left = left.subspan(chunk.size());
    }
  });
  num_bytes_ += static_cast<int64_t>(data.size());
  return crc;
}

FileRecord HashedFile::finish() {
  file_.sync();
  const std::string& path = file_.path();
  return {path.substr(path.rfind('/') + 1), num_bytes_, hash_.finish()};
}

}  // namespace torchtitan::storage
