#include "base/philox.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace torchtitan::base {
namespace {

TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  EXPECT_EQ(philox4x32({0, 0}, {0, 0, 0, 0}),
            (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox4x32({ones, ones}, {ones, ones, ones, ones}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0xa4093822, 0x299f31d0},
                       {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, HashesNamesByFnv1a) {
  EXPECT_EQ(fnv1a64(""), 0xcbf29ce484222325);
  EXPECT_EQ(fnv1a64("a"), 0xaf63dc4c8601ec8c);
  EXPECT_EQ(fnv1a64("foobar"), 0x85944171f73967e8);
}

TEST(Philox, StreamPutsSeedInTheKeyAndNameAboveTheIndex) {
  const PhiloxStream stream(0x0123456789abcdef, "foobar");
  EXPECT_EQ(stream.block((uint64_t{7} << 32) | 5),
            philox4x32({0x89abcdef, 0x01234567}, {5, 7, 0xf73967e8, 0x85944171}));
}

TEST(Philox, StreamsOfOtherSeedsNamesOrIndicesDiffer) {
  std::set<PhiloxBlock> seen;
  for (const uint64_t seed : {0ull, 1ull, 1ull << 32}) {
    for (const char* name :
         {"", "layers.0.attention.wq.weight", "layers.1.attention.wq.weight"}) {
      for (const uint64_t index : {0ull, 1ull, 1ull << 32}) {
        seen.insert(PhiloxStream(seed, name).block(index));
      }
    }
  }
  EXPECT_EQ(seen.size(), 27u);
}

TEST(Philox, UniformPairsStayInsideTheOpenIntervalAndFillIt) {
  const PhiloxStream stream(1, "uniform");
  double low = 1.0;
  double high = 0.0;
  for (uint64_t index = 0; index < 20000; ++index) {
    for (const double value : stream.uniform_pair(index)) {
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  EXPECT_GT(low, 0.0);
  EXPECT_LT(low, 1e-3);
  EXPECT_LT(high, 1.0);
  EXPECT_GT(high, 1.0 - 1e-3);
}

}  // namespace
}  // namespace torchtitan::base
