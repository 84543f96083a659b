// Threads that hash and write the blocks of a new file.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "storage/checksum.h"
#include "storage/file.h"

namespace torchtitan::storage {

struct FreeBytes {
  void operator()(std::byte* bytes) const { std::free(bytes); }
};
// Of kHashedBlockBytes, at a multiple of kDirectBytes.
using BlockBuffer = std::unique_ptr<std::byte[], FreeBytes>;

// Blocks of kHashedBlockBytes get the next number when they are put, and are written in
// any order. For one caller's thread.
class BlockWriter {
 public:
  // Bypasses the cache of the operating system where the file allows it: the pages of a
  // checkpoint are not read again soon, and to make room for them costs more than to
  // write. `file` lives as long as this.
  BlockWriter(File& file, int64_t num_threads);
  // Waits until the threads have ended. What they have not begun is lost.
  ~BlockWriter();
  BlockWriter(const BlockWriter&) = delete;
  BlockWriter& operator=(const BlockWriter&) = delete;

  // Whether blocks have to be in buffers.
  bool takes_buffers_only() const { return is_direct_; }

  // An unused one. Waits for one at num_threads + 1 of them.
  BlockBuffer take_buffer();

  void put(BlockBuffer buffer);
  // `block` lives until wait() returns.
  void put(std::span<const std::byte> block);

  // Returns once nothing is under way. Never throws.
  void wait();

  // Throws the error of a thread, if one had one; what is put after it is not written.
  void check();

  // All that was put; then the last block, of any size below kHashedBlockBytes, empty
  // for none. Returns the block_sha256 of all, one behind the other. Throws as check()
  // does, and FileError.
  std::string finish(std::span<const std::byte> last);

 private:
  struct Block {
    size_t number;
    std::span<const std::byte> bytes;
    BlockBuffer buffer;  // empty where the bytes are the caller's
  };

  void enqueue(Block block);
  void work();  // of a thread
  void write_next(std::unique_lock<std::mutex>& lock);
  std::string hash_and_write(size_t number, std::span<const std::byte> bytes);

  File& file_;
  const bool is_direct_;
  const size_t num_threads_;
  size_t num_buffers_ = 0;  // made so far
  size_t num_put_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable to_do_, done_;
  std::deque<Block> queue_;
  std::vector<BlockBuffer> unused_;
  std::string hashes_;
  size_t num_under_way_ = 0;  // of the blocks in the queue and in threads
  size_t num_idle_ = 0;       // threads
  std::exception_ptr error_;
  bool is_ending_ = false;

  std::vector<std::thread> threads_;  // last: they use all of the above
};

}  // namespace torchtitan::storage
