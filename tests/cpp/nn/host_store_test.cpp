#include "nn/host_store.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "core/cpu_allocator.h"

namespace torchtitan::nn {
namespace {

TEST(HostStore, BringsBackValuesShapesAndStrides) {
  auto a = at::randn({3, 4});
  auto b = at::arange(10).narrow(0, 3, 4);
  auto c = at::randn({5, 2}, at::kBFloat16).t();
  const auto expected_a = a.clone(), expected_b = b.clone(), expected_c = c.clone();
  const auto store = copies_on_host();
  const auto away = store->start_offload({&a, &b, &c});
  EXPECT_EQ(store->memory().live(), 4 * 12 + 8 * 10 + 2 * 10);
  away->wait_offload();
  EXPECT_FALSE(a.defined() || b.defined() || c.defined());
  away->start_reload();
  away->wait_reload();
  EXPECT_TRUE(at::equal(a, expected_a));
  EXPECT_TRUE(at::equal(b, expected_b));
  EXPECT_TRUE(at::equal(c, expected_c));
  EXPECT_EQ(c.strides(), expected_c.strides());
  EXPECT_EQ(b.storage_offset(), 3);
  EXPECT_EQ(store->memory().live(), 0);
}

TEST(HostStore, CopiesAStorageOnceAndKeepsItsViewsTogether) {
  auto a = at::randn({4, 4});
  auto b = a.t();
  const auto store = copies_on_host();
  const auto away = store->start_offload({&a, &b});
  EXPECT_EQ(store->memory().peak(), 64);
  away->wait_offload();
  away->start_reload();
  away->wait_reload();
  EXPECT_TRUE(a.is_alias_of(b));
  a.fill_(3);
  EXPECT_EQ(b.sum().item<float>(), 48);
}

TEST(HostStore, FreesTheDeviceAtTheWaitAndTakesItAgainAtTheReload) {
  auto& memory = core::cpu_memory();
  const int64_t before = memory.live();
  auto a = at::randn({1000});
  const auto away = copies_on_host()->start_offload({&a});
  EXPECT_EQ(memory.live() - before, 4000);
  away->wait_offload();
  EXPECT_EQ(memory.live() - before, 0);
  away->start_reload();
  EXPECT_EQ(memory.live() - before, 4000);
  away->wait_reload();
  EXPECT_EQ(memory.live() - before, 4000);
}

// Whoever else has the tensor keeps it: it comes back as one of its own.
TEST(HostStore, LeavesWhatOthersReferTo) {
  auto a = at::ones({8});
  auto others = a;
  const auto store = copies_on_host();
  auto first = store->start_offload({&a});
  auto second = store->start_offload({&others});
  first->wait_offload();
  EXPECT_TRUE(at::equal(others, at::ones({8})));
  second->wait_offload();
  EXPECT_EQ(store->memory().live(), 64);
  for (auto* away : {first.get(), second.get()}) {
    away->start_reload();
    away->wait_reload();
  }
  EXPECT_TRUE(at::equal(a, others));
  EXPECT_FALSE(a.is_alias_of(others));
}

TEST(HostStore, ForgetsItsMemoryWithWhatIsStillAway) {
  auto a = at::ones({8});
  const auto store = copies_on_host();
  store->start_offload({&a}).reset();
  EXPECT_EQ(store->memory().live(), 0);
  EXPECT_TRUE(a.defined());
}

TEST(HostStore, PassesOverTensorsThatAreUndefinedOrEmpty) {
  at::Tensor none;
  auto empty = at::empty({0});
  const auto store = copies_on_host();
  const auto away = store->start_offload({&none, &empty});
  away->wait_offload();
  away->start_reload();
  away->wait_reload();
  EXPECT_FALSE(none.defined());
  EXPECT_TRUE(empty.defined());
  EXPECT_EQ(store->memory().peak(), 0);
}

TEST(HostStore, DoesNothingWhereHostMemoryIsTheDevices) {
  auto a = at::ones({8});
  const auto* const data = a.const_data_ptr();
  const auto store = host_is_device();
  const auto away = store->start_offload({&a});
  away->wait_offload();
  EXPECT_EQ(a.const_data_ptr(), data);
  away->start_reload();
  away->wait_reload();
  EXPECT_EQ(a.const_data_ptr(), data);
  EXPECT_FALSE(store->moves());
}

TEST(HostStore, CountsTheStoragesBehindTensorsOnce) {
  auto a = at::empty({6});
  auto b = a.narrow(0, 1, 2);
  auto c = at::empty({2}, at::kDouble);
  at::Tensor none;
  EXPECT_EQ(storage_bytes({&a, &b, &c, &none}), 24 + 16);
}

TEST(HostStore, ALeafThatDroppedItsMemoryStillGetsItsGradient) {
  const auto leaf = at::randn({4, 3}).set_requires_grad(true);
  const auto sum = leaf.sum();
  drop_leaf_memory(leaf);
  EXPECT_EQ(leaf.storage().nbytes(), 4);
  EXPECT_TRUE(leaf.isnan().all().item<bool>());
  sum.backward();
  EXPECT_TRUE(at::equal(leaf.grad(), at::ones({4, 3})));
}

}  // namespace
}  // namespace torchtitan::nn
