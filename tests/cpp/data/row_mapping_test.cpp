#include "data/row_mapping.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <stdexcept>
#include <string>

namespace torchtitan::data {
namespace {

TEST(RowMapping, RanksAndMicrobatchesCoverTheGlobalBatchOnce) {
  for (const int64_t ranks : {1, 2, 3, 4, 12}) {
    for (const int64_t local : {1, 2, 4}) {
      const int64_t rows = 2 * ranks * local;
      std::multiset<int64_t> seen;
      for (int64_t rank = 0; rank < ranks; ++rank) {
        const RowMapping mapping{rows, local, ranks, rank};
        ASSERT_EQ(num_microbatches(mapping), 2);
        for (int64_t microbatch = 0; microbatch < 2; ++microbatch) {
          for (int64_t i = 0; i < local; ++i) {
            seen.insert(first_row(mapping, microbatch) + i);
          }
        }
      }
      EXPECT_EQ(seen.size(), static_cast<size_t>(rows));
      EXPECT_EQ(std::set<int64_t>(seen.begin(), seen.end()).size(),
                static_cast<size_t>(rows));
      EXPECT_EQ(*seen.begin(), 0);
      EXPECT_EQ(*seen.rbegin(), rows - 1);
    }
  }
}

TEST(RowMapping, GivesMicrobatchesOfAllRanksNeighbouringRows) {
  EXPECT_EQ(first_row({24, 3, 4, 1}, 0), 3);
  EXPECT_EQ(first_row({24, 3, 4, 1}, 1), 15);
}

std::string text_of(const RowMapping& mapping) {
  try {
    check_row_mapping(mapping);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(RowMapping, RefusesSizesThatDoNotFit) {
  EXPECT_EQ(text_of({12, 4, 2, 0}),
            "global_batch_size 12 is not a multiple of local_batch_size 4 x 2 "
            "data-parallel ranks = 8");
  EXPECT_NE(text_of({8, 4, 2, 2}).find("expected 0 <= rank < 2, got rank 2"),
            std::string::npos);
  EXPECT_NE(text_of({0, 4, 2, 0}).find("expected positive sizes"), std::string::npos);
  EXPECT_NE(text_of({8, int64_t{1} << 62, 4, 0}).find("overflow"), std::string::npos);
  EXPECT_THROW(first_row({8, 4, 2, 0}, 1), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::data
