#include "collectives/work_meter.h"

#include <sys/resource.h>
#include <sys/time.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

namespace torchtitan::collectives {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kIoBytes = 16 << 10;
constexpr int64_t kPartOfTime = 50;

int64_t microseconds(const timeval& time) {
  return int64_t{time.tv_sec} * 1'000'000 + time.tv_usec;
}

// Of all threads but the calling one.
int64_t cpu_of_others_us() {
  rusage used = {};
  getrusage(RUSAGE_SELF, &used);
  timespec own = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &own);
  return microseconds(used.ru_utime) + microseconds(used.ru_stime) -
         (int64_t{own.tv_sec} * 1'000'000 + own.tv_nsec / 1000);
}

// Read and written so far; 0 where the system does not say.
int64_t io_bytes() {
  std::ifstream file("/proc/self/io");
  std::string name;
  int64_t value = 0;
  int64_t sum = 0;
  while (file >> name >> value) {
    if (name == "rchar:" || name == "wchar:") sum += value;
  }
  return sum;
}

bool waits_for_disk() {
  std::error_code error;
  for (std::filesystem::directory_iterator task("/proc/self/task", error), end;
       !error && task != end; task.increment(error)) {
    std::ifstream file(task->path() / "stat");
    std::string line;
    std::getline(file, line);
    // "tid (command) state ...": the command may hold anything.
    const auto place = line.rfind(") ");
    if (place != std::string::npos && line.compare(place + 2, 1, "D") == 0) return true;
  }
  return false;
}

}  // namespace

WorkMeter::WorkMeter()
    : time_(Clock::now()), cpu_us_(cpu_of_others_us()), io_bytes_(io_bytes()) {}

int64_t WorkMeter::read() {
  const auto now = Clock::now();
  const int64_t cpu = cpu_of_others_us();
  const int64_t io = io_bytes();
  const auto passed =
      std::chrono::duration_cast<std::chrono::microseconds>(now - time_).count();
  const bool computed = (cpu - cpu_us_) * kPartOfTime >= passed;
  if (computed || io - io_bytes_ >= kIoBytes || waits_for_disk()) ++count_;
  time_ = now;
  cpu_us_ = cpu;
  io_bytes_ = io;
  return count_;
}

}  // namespace torchtitan::collectives
