#include "core/cpu_allocator.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

namespace torchtitan::core {
namespace {

at::Tensor bytes(int64_t size) { return at::empty({size}, at::kByte); }

TEST(CpuAllocator, CountsTheBytesThatTensorsAskFor) {
  const int64_t before = cpu_memory().live();
  cpu_memory().reset_peak();
  {
    const at::Tensor first = bytes(1000);
    {
      const at::Tensor second = bytes(30);
    }
    EXPECT_EQ(cpu_memory().live() - before, 1000);
    EXPECT_EQ(cpu_memory().peak() - before, 1030);
    EXPECT_EQ(bytes(0).numel(), 0);
  }
  EXPECT_EQ(cpu_memory().live(), before);
}

TEST(CpuAllocator, AFreedTensorMakesRoomForOneOfNearlyItsSize) {
  cpu_memory();
  void* place = nullptr;
  {
    const at::Tensor tensor = bytes(1000000);
    place = tensor.data_ptr();
  }
  const at::Tensor next = bytes(1000100);
  EXPECT_EQ(next.data_ptr(), place);
  const at::Tensor other = bytes(1000000);
  EXPECT_NE(other.data_ptr(), place);
}

TEST(CpuAllocator, MemoryOfEverySizeIsAlignedAndWritable) {
  cpu_memory();
  std::vector<at::Tensor> tensors;
  for (int64_t size = 1; size < 5000; size += 1 + size / 16) {
    tensors.push_back(bytes(size));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensors.back().data_ptr()) % 64, 0u);
    tensors.back().fill_(size % 251);
  }
  for (const at::Tensor& tensor : tensors) {
    const int64_t expected = tensor.numel() % 251 * tensor.numel();
    EXPECT_EQ(tensor.sum(at::kLong).item<int64_t>(), expected);
  }
}

TEST(CpuAllocator, TensorsMayGrowAndBeFreedOnAnotherThread) {
  const int64_t before = cpu_memory().live();
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      at::Tensor kept = at::ones({16}, at::kLong);
      for (int64_t i = 0; i < 200; ++i) {
        const at::Tensor other = bytes(64 + i * (t + 1));
        kept.resize_({16 + i});
      }
      EXPECT_EQ(kept.narrow(0, 0, 16).sum().item<int64_t>(), 16);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(cpu_memory().live(), before);
}

TEST(CpuAllocator, AThreadCountsWhatItHasMadeWhoeverFreesIt) {
  const int64_t before = cpu_memory().live();
  const at::Tensor of_another = bytes(500);
  at::Tensor passed_on;
  MemoryCounter* counter = nullptr;
  std::thread([&] {
    const at::Tensor uncounted = bytes(77);
    counter = &thread_memory();
    passed_on = bytes(1000);
    const at::Tensor more = bytes(30);
    EXPECT_EQ(&thread_memory(), counter);
  }).join();
  EXPECT_EQ(counter->live(), 1000);
  EXPECT_EQ(counter->peak(), 1030);
  EXPECT_EQ(cpu_memory().live() - before, 1500);
  passed_on.reset();
  EXPECT_EQ(counter->live(), 0);
}

TEST(CpuAllocator, KeptMemoryCanBeGivenBackAndAskedForAgain) {
  cpu_memory();
  {
    const at::Tensor tensor = bytes(1 << 20);
  }
  release_kept_cpu_memory();
  at::Tensor tensor = bytes(1 << 20);
  EXPECT_EQ(tensor.fill_(1).sum(at::kLong).item<int64_t>(), 1 << 20);
}

TEST(CpuAllocator, AForkedChildAllocatesWhileTheParentsThreadsDo) {
  cpu_memory();
  std::atomic<bool> stop = false;
  std::thread busy([&] {
    while (!stop) bytes(4096);
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // a deadlock ends the child
      for (int j = 0; j < 10; ++j) bytes(4096);
      _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  stop = true;
  busy.join();
}

TEST(CpuAllocator, TooMuchMemoryIsAnErrorThatNamesTheSize) {
  cpu_memory();
  try {
    bytes(int64_t{1} << 60);
    FAIL();
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("1152921504606846976 bytes"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace torchtitan::core
