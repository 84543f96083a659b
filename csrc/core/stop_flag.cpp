#include "core/stop_flag.h"

#include <time.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <system_error>

namespace torchtitan::core {

namespace {

// Not objects of their own: a signal belongs to the process, and its handler gets no
// argument.
std::atomic<bool> requested = false;
std::atomic<int64_t> first_ms = 0;  // when the first one came; 0: not yet
std::atomic<int64_t> echo_ms = 0;
static_assert(std::atomic<bool>::is_always_lock_free &&
                  std::atomic<int64_t>::is_always_lock_free,
              "a handler must not lock");

// clock_gettime may be called in a handler.
int64_t now_ms() {
  timespec time = {};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1000000;
}

void request_stop(int) {
  const int saved_errno = errno;
  const int64_t now = now_ms();
  int64_t first = 0;
  if (first_ms.compare_exchange_strong(first, now)) {
    requested.store(true);
  } else if (now - first >= echo_ms.load()) {
    std::signal(SIGTERM, SIG_DFL);
    std::raise(SIGTERM);  // delivered when this handler returns
  }
  errno = saved_errno;
}

}  // namespace

void install_stop_signal(std::chrono::milliseconds echo) {
  echo_ms.store(echo.count());
  first_ms.store(0);
  struct sigaction action = {};
  action.sa_handler = request_stop;
  action.sa_flags = SA_RESTART;  // system calls go on
  sigemptyset(&action.sa_mask);
  if (sigaction(SIGTERM, &action, nullptr) != 0) {
    throw std::system_error(errno, std::generic_category(), "install_stop_signal");
  }
}

bool stop_requested() { return requested.load(); }

}  // namespace torchtitan::core
