#include "core/stop_flag.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <system_error>

namespace torchtitan::core {

namespace {

// Not an object of its own: a signal belongs to the process, and its handler gets no
// argument.
std::atomic<bool> requested = false;
static_assert(std::atomic<bool>::is_always_lock_free, "a handler must not lock");

void request_stop(int) { requested.store(true); }

}  // namespace

void install_stop_signal() {
  struct sigaction action = {};
  action.sa_handler = request_stop;
  // RESETHAND: the second signal finds the default action. RESTART: system calls go on.
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  sigemptyset(&action.sa_mask);
  if (sigaction(SIGTERM, &action, nullptr) != 0) {
    throw std::system_error(errno, std::generic_category(), "install_stop_signal");
  }
}

bool stop_requested() { return requested.load(); }

}  // namespace torchtitan::core
