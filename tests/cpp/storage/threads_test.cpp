// Ranks that are threads save in the background at once; what they share in this layer
// must stand it. The thread sanitizer runs this too (preset "tsan").
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "storage/commit.h"
#include "storage/saved_checkpoints.h"
#include "storage/temporary_folder.h"

namespace torchtitan::storage {
namespace {

constexpr int64_t kRuns = 3;
constexpr int64_t kSteps = 8;

TEST(Threads, SavePurgeAndReadFoldersWhileAnotherListsThem) {
  const TemporaryFolder folder;
  const auto run_folder = [&](int64_t run) {
    return folder / ("run-" + std::to_string(run));
  };
  std::atomic<int64_t> left = kRuns;
  std::vector<std::thread> threads;
  for (int64_t run = 0; run < kRuns; ++run) {
    threads.emplace_back([&, run] {
      const std::string own = run_folder(run);
      for (int64_t step = 1; step <= kSteps; ++step) {
        save(own, {.step = step, .sequence = step, .parent = step - 1});
        purge(own, 2, id_of(step), {});
        EXPECT_EQ(newest_value(own), step);
      }
      --left;
    });
  }
  while (left > 0) {
    for (int64_t run = 0; run < kRuns; ++run) {
      // What is deleted meanwhile has a problem; whatever has none is whole.
      for (const FoundCheckpoint& found :
           list_checkpoints(run_folder(run)).checkpoints) {
        if (found.manifest) EXPECT_EQ(found.manifest->sequence, found.step);
      }
    }
  }
  for (std::thread& thread : threads) thread.join();
  for (int64_t run = 0; run < kRuns; ++run) {
    EXPECT_EQ(steps_in(run_folder(run)), "8,7");
  }
}

}  // namespace
}  // namespace torchtitan::storage
