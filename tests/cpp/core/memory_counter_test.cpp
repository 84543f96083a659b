#include "core/memory_counter.h"

#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

namespace torchtitan::core {
namespace {

at::Tensor meta(std::vector<int64_t> shape) {
  return at::empty(shape, at::TensorOptions().device(at::kMeta).dtype(at::kFloat));
}

TEST(MemoryCounter, KeepsTheLargestLiveValueUntilReset) {
  MemoryCounter counter;
  counter.add(5);
  counter.add(7);
  counter.remove(5);
  counter.add(1);
  EXPECT_EQ(counter.live(), 8);
  EXPECT_EQ(counter.peak(), 12);
  counter.reset_peak();
  EXPECT_EQ(counter.peak(), 8);
}

TEST(MemoryCounter, CountsWhatMetaTensorsWouldHold) {
  const int64_t before = meta_memory().live();
  {
    const at::Tensor a = meta({3, 5});
    const at::Tensor view = a.view({15});
    EXPECT_EQ(meta_memory().live() - before, 60);
    const at::Tensor sum = at::add(a, a);
    EXPECT_EQ(meta_memory().live() - before, 120);
    EXPECT_EQ(meta({0, 4}).numel(), 0);
  }
  EXPECT_EQ(meta_memory().live(), before);
}

TEST(MemoryCounter, MetaTensorsOfAnySizeCostNoMemory) {
  meta_memory().reset_peak();
  const int64_t before = meta_memory().live();
  {
    const at::Tensor huge = meta({int64_t{1} << 40});
    EXPECT_EQ(huge.storage().nbytes(), size_t{1} << 42);
  }
  EXPECT_EQ(meta_memory().peak() - before, int64_t{1} << 42);
}

}  // namespace
}  // namespace torchtitan::core
