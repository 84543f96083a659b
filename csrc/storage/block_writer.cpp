#include "storage/block_writer.h"

#include <new>
#include <system_error>
#include <utility>

namespace torchtitan::storage {
namespace {

constexpr size_t kDigits = 64;  // of a hash

}  // namespace

BlockWriter::BlockWriter(File& file, int64_t num_threads)
    : file_(file), is_direct_(file.bypass_cache()),
      // Without the cache a thread sleeps while the device works; another one hashes.
      num_threads_(static_cast<size_t>(num_threads) + (is_direct_ ? 1 : 0)) {}

BlockWriter::~BlockWriter() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
    queue_.clear();
  }
  to_do_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

BlockBuffer BlockWriter::take_buffer() {
  std::unique_lock lock(mutex_);
  if (unused_.empty() && num_buffers_ <= num_threads_) {
    void* bytes = std::aligned_alloc(kDirectBytes, kHashedBlockBytes);
    if (bytes == nullptr) throw std::bad_alloc();
    ++num_buffers_;
    return BlockBuffer(static_cast<std::byte*>(bytes));
  }
  done_.wait(lock, [&] { return !unused_.empty(); });
  BlockBuffer buffer = std::move(unused_.back());
  unused_.pop_back();
  return buffer;
}

void BlockWriter::put(BlockBuffer buffer) {
  const std::span<const std::byte> bytes(buffer.get(), kHashedBlockBytes);
  enqueue({num_put_++, bytes, std::move(buffer)});
}

void BlockWriter::put(std::span<const std::byte> block) {
  enqueue({num_put_++, block, nullptr});
}

void BlockWriter::enqueue(Block block) {
  std::unique_lock lock(mutex_);
  hashes_.append(kDigits, '0');
  queue_.push_back(std::move(block));
  ++num_under_way_;
  if (num_idle_ < queue_.size() && threads_.size() < num_threads_) {
    try {
      threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      // No thread to be had: those that there are do the work, or the caller.
      if (threads_.empty()) write_next(lock);
    }
  }
  lock.unlock();
  to_do_.notify_one();
}

void BlockWriter::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++num_idle_;
    to_do_.wait(lock, [&] { return is_ending_ || !queue_.empty(); });
    --num_idle_;
    if (queue_.empty()) return;
    write_next(lock);
  }
}

void BlockWriter::write_next(std::unique_lock<std::mutex>& lock) {
  Block block = std::move(queue_.front());
  queue_.pop_front();
  if (error_ == nullptr) {
    lock.unlock();
    std::string hash;
    std::exception_ptr error;
    try {
      hash = hash_and_write(block.number, block.bytes);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error_ == nullptr) error_ = error;
    hashes_.replace(block.number * kDigits, hash.size(), hash);
  }
  if (block.buffer != nullptr) unused_.push_back(std::move(block.buffer));
  --num_under_way_;
  done_.notify_all();
}

std::string BlockWriter::hash_and_write(size_t number,
                                        std::span<const std::byte> bytes) {
  std::string hash = block_sha256(bytes);
  const auto offset = static_cast<int64_t>(number * kHashedBlockBytes);
  file_.write_at(offset, bytes);
  file_.begin_sync(offset, bytes.size());
  return hash;
}

void BlockWriter::wait() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return num_under_way_ == 0; });
}

void BlockWriter::check() {
  const std::lock_guard lock(mutex_);
  if (error_ != nullptr) std::rethrow_exception(error_);
}

std::string BlockWriter::finish(std::span<const std::byte> last) {
  wait();
  check();
  file_.use_cache();  // for a size that is no multiple of kDirectBytes
  std::string hashes = std::move(hashes_);
  if (!last.empty()) hashes += hash_and_write(num_put_, last);
  return hashes;
}

}  // namespace torchtitan::storage
