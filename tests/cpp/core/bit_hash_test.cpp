#include "core/bit_hash.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <set>

namespace torchtitan::core {
namespace {

using at::Tensor;

using Hash = Tensor (*)(const std::vector<Tensor>&);

int64_t hash_of(Hash hash, const Tensor& tensor) {
  const Tensor hashes = hash({tensor});
  EXPECT_EQ(hashes.scalar_type(), at::kLong);
  return hashes.item<int64_t>();
}

class BitHash : public testing::TestWithParam<Hash> {};

TEST_P(BitHash, EveryBitOfATensorCounts) {
  // The last bytes fill no word; zeros are the hardest to tell apart.
  Tensor tensor = at::zeros({83}, at::kByte);
  std::set<int64_t> hashes{hash_of(GetParam(), tensor)};
  auto* const bytes = tensor.mutable_data_ptr<uint8_t>();
  for (int64_t place = 0; place < tensor.numel(); ++place) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[place] = static_cast<uint8_t>(1 << bit);
      hashes.insert(hash_of(GetParam(), tensor));
    }
    bytes[place] = 0;
  }
  EXPECT_EQ(hashes.size(), 1U + 83U * 8U);
}

TEST_P(BitHash, NumberOfBytesAndOrderCount) {
  const Tensor tensor = at::arange(600, at::kFloat);
  std::set<int64_t> hashes{hash_of(GetParam(), tensor)};
  hashes.insert(hash_of(GetParam(), tensor.flip(0)));
  hashes.insert(hash_of(GetParam(), tensor.slice(0, 0, 599)));
  hashes.insert(hash_of(GetParam(), tensor.slice(0, 0, 0)));
  hashes.insert(hash_of(GetParam(), at::zeros({600})));
  hashes.insert(hash_of(GetParam(), at::zeros({601})));
  EXPECT_EQ(hashes.size(), 6U);
}

TEST_P(BitHash, DependsOnBytesInRowMajorOrderOnly) {
  const Tensor tensor = at::arange(300'000, at::kFloat).view({600, 500});
  const int64_t expected = hash_of(GetParam(), tensor);
  EXPECT_EQ(hash_of(GetParam(), tensor.t().contiguous().t()), expected);
  EXPECT_EQ(hash_of(GetParam(), tensor.view(at::kInt).clone()), expected);
  const int before = at::get_num_threads();
  at::set_num_threads(before == 1 ? 2 : 1);
  EXPECT_EQ(hash_of(GetParam(), tensor), expected);
  at::set_num_threads(before);
}

TEST_P(BitHash, NoTensorsHaveNoHashes) {
  EXPECT_EQ(GetParam()({}).sizes(), at::IntArrayRef({0}));
}

INSTANTIATE_TEST_SUITE_P(Both, BitHash,
                         testing::Values(&hash_bits, &hash_bits_by_operators));

}  // namespace
}  // namespace torchtitan::core
