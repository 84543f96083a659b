#include "collectives/work_meter.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace torchtitan::collectives {
namespace {

using namespace std::chrono_literals;

TEST(WorkMeter, CountsWhatOtherThreadsDo) {
  WorkMeter meter;
  std::atomic<bool> stop = false;
  std::thread busy([&] {
    while (!stop) {
    }
  });
  const auto start = std::chrono::steady_clock::now();
  // How often the other thread runs depends on the machine.
  while (meter.read() < 3 && std::chrono::steady_clock::now() - start < 60s) {
    std::this_thread::sleep_for(20ms);
  }
  stop = true;
  busy.join();
  EXPECT_EQ(meter.read() >= 3, true);
}

TEST(WorkMeter, DoesNotCountAProcessThatStandsStillNorItsOwner) {
  WorkMeter meter;
  const int64_t before = meter.read();
  for (int i = 0; i < 20; ++i) {
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - start < 10ms) {
    }
    std::this_thread::sleep_for(10ms);
    meter.read();
  }
  EXPECT_LE(meter.read() - before, 5);
}

}  // namespace
}  // namespace torchtitan::collectives
