#include "collectives/fake_group.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "collectives/test_support.h"

namespace torchtitan::collectives {
namespace {

using at::Tensor;

TEST(FakeGroup, DefinesEveryOutputFromTheOwnInput) {
  const Group group = fake_group("fsdp", 1, 3);
  EXPECT_EQ(group.rank(), 1);
  EXPECT_EQ(group.size(), 3);
  const Tensor in = at::arange(6.0);

  const Tensor gathered = at::full({4, 3}, 7.0);
  const Tensor own = gathered.view({3, 4}).select(0, 1);  // in place
  own.copy_(at::arange(4.0));
  group.all_gather(gathered, own).wait();
  EXPECT_TRUE(at::equal(gathered.view({3, 4}), at::arange(4.0).expand({3, 4})));

  const Tensor scattered = at::full({2}, 7.0);
  group.reduce_scatter(scattered, in).wait();
  EXPECT_TRUE(at::equal(scattered, at::tensor({2.0F, 3.0F})));

  const Tensor exchanged = at::full({5}, 7.0);
  group.all_to_all(exchanged, in, {1, 2, 2}, {3, 2, 1}).wait();
  EXPECT_TRUE(at::equal(exchanged, at::tensor({0.0F, 3.0F, 4.0F, 0.0F, 0.0F})));

  const Tensor received = at::full({2}, 7.0);
  group.recv(received, 0).wait();
  EXPECT_TRUE(at::equal(received, at::tensor({0.0F, 0.0F})));

  const Tensor reduced = in.clone();
  group.all_reduce(reduced).wait();
  group.broadcast(reduced, 2).wait();
  group.send(reduced, 0).wait();
  group.barrier().wait();
  EXPECT_TRUE(at::equal(reduced, in));
}

TEST(FakeGroup, IsCompleteAtOnceOnMetaTensors) {
  const Group group = fake_group("fsdp", 0, 512);
  const auto meta = at::TensorOptions().device(at::kMeta).dtype(at::kBFloat16);
  const Tensor small = at::empty({int64_t{1} << 30}, meta);
  const Tensor large = at::empty({int64_t{1} << 39}, meta);
  EXPECT_TRUE(group.all_gather(large, small).completed());
  EXPECT_TRUE(group.reduce_scatter(small, large).completed());
  EXPECT_TRUE(group.all_reduce(large).completed());
}

TEST(FakeGroup, RefusesARankOutsideItsSize) {
  EXPECT_EQ(fake_group("dp", 0, 1).size(), 1);
  expect_value_error("expected 0 <= rank < size, but got rank 2 of 2",
                     [] { fake_group("dp", 2, 2); });
}

}  // namespace
}  // namespace torchtitan::collectives
