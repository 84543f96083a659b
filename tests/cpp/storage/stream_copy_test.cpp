#include "storage/stream_copy.h"

#include <gtest/gtest.h>

#include <random>
#include <stdexcept>
#include <vector>

namespace torchtitan::storage {
namespace {

TEST(StreamCopy, CopiesRangesOfAnySizeAndPlaceAndNothingElse) {
  std::mt19937 random(6);
  std::vector<std::byte> from(9 << 20);
  for (std::byte& byte : from) byte = static_cast<std::byte>(random());
  for (const int64_t num_threads : {1, 3}) {
    std::vector<std::byte> to(from.size()), expected(from.size());
    std::vector<Copied> copies;
    size_t at = 0;
    for (const size_t size : {0, 1, 63, 64, 65, 200, 4 << 20, (4 << 20) + 1, 77}) {
      const size_t gap = random() % 70, begin = random() % (from.size() - size);
      at += gap;
      copies.push_back({.to = std::span(to).subspan(at, size),
                        .from = std::span(from).subspan(begin, size)});
      for (size_t i = 0; i < size; ++i) expected[at + i] = from[begin + i];
      at += size;
    }
    stream_copy(copies, num_threads);
    EXPECT_EQ(to, expected);
  }
}

TEST(StreamCopy, RefusesDifferentSizes) {
  std::vector<std::byte> from(3), to(4);
  const Copied copy{.to = to, .from = from};
  EXPECT_THROW(stream_copy({&copy, 1}, 1), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::storage
