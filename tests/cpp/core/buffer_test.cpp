#include "core/buffer.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

namespace torchtitan::core {
namespace {

TEST(Buffer, StartsReleased) {
  const Buffer buffer(8, at::kFloat);
  EXPECT_FALSE(buffer.allocated());
  EXPECT_EQ(buffer.flat().numel(), 8);
  EXPECT_EQ(buffer.flat().storage().nbytes(), 0u);
}

TEST(Buffer, ViewsSeeWhatIsWrittenAfterARefill) {
  Buffer buffer(8, at::kDouble);
  buffer.allocate();
  const auto view = buffer.flat().narrow(0, 4, 4);
  buffer.flat().fill_(1);
  buffer.release();
  EXPECT_EQ(buffer.flat().storage().nbytes(), 0u);
  buffer.allocate();
  buffer.flat().copy_(at::arange(8, at::kDouble));
  EXPECT_TRUE(at::equal(view, at::arange(4, 8, at::kDouble)));
}

TEST(Buffer, AGraphMadeBeforeTheReleaseReadsTheRefilledValues) {
  Buffer buffer(4, at::kDouble);
  buffer.allocate();
  buffer.flat().copy_(at::arange(4, at::kDouble));
  const auto leaf = buffer.flat().view({2, 2}).variable_data().set_requires_grad(true);
  const auto x = at::ones({3, 2}, at::kDouble).set_requires_grad(true);
  const auto y = at::linear(x, leaf);
  buffer.release();
  buffer.allocate();
  buffer.flat().copy_(at::arange(4, at::kDouble));
  torch::autograd::backward({y.sum()}, {});
  EXPECT_TRUE(at::equal(x.grad()[0], at::tensor({2.0, 4.0}, at::kDouble)));
}

TEST(Buffer, OnMetaOnlyTheStateChanges) {
  Buffer buffer(int64_t{1} << 50,
                at::TensorOptions().device(at::kMeta).dtype(at::kFloat));
  buffer.allocate();
  EXPECT_TRUE(buffer.allocated());
  buffer.release();
  EXPECT_FALSE(buffer.allocated());
}

}  // namespace
}  // namespace torchtitan::core
