#include "core/stop_flag.h"

#include <gtest/gtest.h>
#include <time.h>

#include <csignal>

namespace torchtitan::core {
namespace {

using namespace std::chrono_literals;

// In a process of its own, because the flag and the handler stay.
[[noreturn]] void signal_twice(std::chrono::milliseconds echo) {
  if (stop_requested()) std::_Exit(1);
  install_stop_signal(echo);
  std::raise(SIGTERM);
  if (!stop_requested()) std::_Exit(2);
  const timespec pause = {.tv_sec = 0, .tv_nsec = 20000000};
  nanosleep(&pause, nullptr);
  std::raise(SIGTERM);
  std::_Exit(3);
}

TEST(StopFlagDeathTest, IsSetByTheFirstSigtermAndALaterOneEndsTheProcess) {
  EXPECT_FALSE(stop_requested());
  EXPECT_EXIT(signal_twice(1ms), testing::KilledBySignal(SIGTERM), "");
}

TEST(StopFlagDeathTest, AnEchoOfTheFirstSigtermIsTheSameRequest) {
  EXPECT_EXIT(signal_twice(1h), testing::ExitedWithCode(3), "");
}

}  // namespace
}  // namespace torchtitan::core
