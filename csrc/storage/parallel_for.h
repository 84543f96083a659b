// Independent pieces of work on a few threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <future>
#include <system_error>
#include <vector>

namespace torchtitan::storage {

// Calls action(i) once for every i < count, on at most num_threads threads, of which
// the caller is one. Returns when all have ended. After an error no more are begun, and
// the error is thrown.
template <class Action>
void parallel_for(size_t count, int64_t num_threads, const Action& action) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    try {
      for (size_t i = next++; i < count; i = next++) action(i);
    } catch (...) {
      next = count;
      throw;
    }
  };
  std::vector<std::future<void>> others;  // whose destructors wait
  for (int64_t n = 1; n < num_threads && static_cast<size_t>(n) < count; ++n) {
    try {
      others.push_back(std::async(std::launch::async, work));
    } catch (const std::system_error&) {
      break;  // no thread to be had: those that there are do the work
    }
  }
  work();
  for (std::future<void>& other : others) other.get();
}

}  // namespace torchtitan::storage
