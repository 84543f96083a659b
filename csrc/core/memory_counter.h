// Tensor bytes that are alive, counted where they are allocated. The counter of a run
// is exact, which the resident set of the process is not (cached pages, other
// libraries).
#pragma once

#include <atomic>
#include <cstdint>

namespace torchtitan::core {

// Any thread may call any member.
class MemoryCounter {
 public:
  void add(int64_t bytes);
  void remove(int64_t bytes) { live_ -= bytes; }

  int64_t live() const { return live_; }
  // The largest live() since the start or the last reset_peak().
  int64_t peak() const { return peak_; }
  void reset_peak() { peak_ = live(); }

 private:
  std::atomic<int64_t> live_ = 0;
  std::atomic<int64_t> peak_ = 0;
};

// The bytes that meta tensors would have. Counts those allocated after the first call,
// which puts a counting allocator in place of torch's for the rest of the process (it
// allocates nothing either).
MemoryCounter& meta_memory();

}  // namespace torchtitan::core
