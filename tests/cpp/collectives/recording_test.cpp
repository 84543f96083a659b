#include "collectives/recording.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "collectives/fake_group.h"
#include "collectives/local_world.h"
#include "collectives/test_support.h"

namespace torchtitan::collectives {
namespace {

TEST(Recording, CountsCallsAndBytesOfTheLargerSideByGroupAndVerb) {
  const auto recorder = std::make_shared<Recorder>();
  const Group fsdp = recorded(fake_group("fsdp", 0, 2), recorder);
  const Group tp = recorded(fake_group("tp", 1, 4), recorder);
  EXPECT_EQ(fsdp.name(), "fsdp");
  EXPECT_EQ(tp.rank(), 1);
  const at::Tensor small = at::zeros({3}, at::kDouble);
  const at::Tensor large = at::zeros({6}, at::kDouble);
  fsdp.all_gather(large, small).wait();
  fsdp.all_gather(large, small).wait();
  fsdp.reduce_scatter(small, large).wait();
  tp.all_reduce(small).wait();
  tp.barrier().wait();
  const auto expect = [&](const char* group, const char* verb, int64_t calls,
                          int64_t bytes) {
    const Traffic total = recorder->total(group, verb);
    EXPECT_EQ(total.calls, calls) << group << " " << verb;
    EXPECT_EQ(total.bytes, bytes) << group << " " << verb;
  };
  expect("fsdp", "all_gather", 2, 2 * 48);
  expect("fsdp", "reduce_scatter", 1, 48);
  expect("tp", "all_reduce", 1, 24);
  expect("tp", "barrier", 1, 0);
  expect("tp", "all_gather", 0, 0);
  EXPECT_EQ(recorder->totals().size(), 4U);
  const auto by_group = recorder->totals_by_group();
  ASSERT_EQ(by_group.size(), 2U);
  EXPECT_EQ(by_group.at("fsdp").calls, 3);
  EXPECT_EQ(by_group.at("fsdp").bytes, 3 * 48);
  EXPECT_GT(by_group.at("fsdp").seconds, 0.0);
  EXPECT_EQ(by_group.at("tp").calls, 2);
  EXPECT_EQ(by_group.at("tp").bytes, 24);
  recorder->reset();
  EXPECT_TRUE(recorder->totals().empty());
}

TEST(Recording, DoesNotCountTheIdentity) {
  const auto recorder = std::make_shared<Recorder>();
  recorded(Group("tp"), recorder).all_reduce(at::zeros({3})).wait();
  EXPECT_TRUE(recorder->totals().empty());
  expect_value_error("recorder is null", [] { recorded(Group(), nullptr); });
}

TEST(Recording, AddsTheSecondsSpentInWait) {
  using namespace std::chrono_literals;
  const LocalWorld world(2, 10s);
  const auto recorder = std::make_shared<Recorder>();
  world.run([&](int64_t rank) {
    const Group group = world.group(rank, "dp");
    if (rank == 1) std::this_thread::sleep_for(50ms);
    const Group own = rank == 0 ? recorded(group, recorder) : group;
    own.all_reduce(at::zeros({3})).wait();
  });
  const Traffic total = recorder->total("dp", "all_reduce");
  EXPECT_EQ(total.calls, 1);
  EXPECT_GT(total.seconds, 0.02);
  EXPECT_LT(total.seconds, 5.0);
}

}  // namespace
}  // namespace torchtitan::collectives
