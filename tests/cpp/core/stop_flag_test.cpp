#include "core/stop_flag.h"

#include <gtest/gtest.h>

#include <csignal>

namespace torchtitan::core {
namespace {

// In a process of its own, because the flag and the handler stay.
[[noreturn]] void signal_twice() {
  if (stop_requested()) std::_Exit(1);
  install_stop_signal();
  std::raise(SIGTERM);
  if (!stop_requested()) std::_Exit(2);
  std::raise(SIGTERM);
  std::_Exit(3);
}

TEST(StopFlagDeathTest, IsSetByTheFirstSigtermAndTheSecondEndsTheProcess) {
  EXPECT_FALSE(stop_requested());
  EXPECT_EXIT(signal_twice(), testing::KilledBySignal(SIGTERM), "");
}

}  // namespace
}  // namespace torchtitan::core
