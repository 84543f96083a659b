// Tells a process that works from one that stands still, by what the system counts.
#pragma once

#include <chrono>
#include <cstdint>

namespace torchtitan::collectives {

// For one thread, which asks from time to time and whose own work does not count.
class WorkMeter {
 public:
  WorkMeter();

  // How many of the calls so far have found that the process worked since the call
  // before: its other threads computed for a fiftieth of the time, it read or wrote 16
  // KiB, or one of its threads waits for a disk.
  int64_t read();

 private:
  std::chrono::steady_clock::time_point time_;
  int64_t cpu_us_;
  int64_t io_bytes_;
  int64_t count_ = 0;
};

}  // namespace torchtitan::collectives
