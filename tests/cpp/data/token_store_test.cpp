#include "data/token_store.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <numeric>

#include "data/temporary_folder.h"

namespace torchtitan::data {
namespace {

// A store of the tokens 0, 1, 2 ... in files of the given lengths.
class TokenStoreTest : public ::testing::Test {
 protected:
  std::string write(int64_t first, int64_t count) {
    std::vector<int64_t> ids(static_cast<size_t>(count));
    std::iota(ids.begin(), ids.end(), first);
    TokenShardWriter writer(1000);
    writer.append(ids, "test");
    const std::string path =
        folder_.file("tokens-" + std::to_string(first) + "-" + std::to_string(count));
    writer.write(path, std::to_string(first));
    return path;
  }

  void fill(const std::vector<int64_t>& lengths) {
    int64_t first = 0;
    for (const int64_t length : lengths) {
      EXPECT_EQ(store_.attach(write(first, length)), std::to_string(first));
      first += length;
    }
  }

  at::Tensor rows(std::vector<int64_t> values, int64_t num_rows) {
    return at::tensor(values, at::kLong).view({num_rows, -1});
  }

  TemporaryFolder folder_;
  TokenStore store_;
};

TEST_F(TokenStoreTest, ConsecutiveSamplesShareTheirBoundaryToken) {
  fill({3, 1, 6});
  const auto [input, labels] = store_.gather({0, 2, 4, 1000, AtEnd::kMore});
  EXPECT_TRUE(at::equal(input, rows({0, 1, 2, 3, 4, 5, 6, 7}, 2)));
  EXPECT_TRUE(at::equal(labels, rows({1, 2, 3, 4, 5, 6, 7, 8}, 2)));
}

TEST_F(TokenStoreTest, DoesNotDependOnHowTokensAreSplitIntoFiles) {
  fill({5, 5});
  TokenStore whole;
  whole.attach(write(0, 10));
  for (int64_t sample = 0; sample < 20; ++sample) {
    const auto split = store_.gather({sample, 2, 3, 1000, AtEnd::kRepeat});
    const auto single = whole.gather({sample, 2, 3, 1000, AtEnd::kRepeat});
    EXPECT_TRUE(at::equal(split.input, single.input));
    EXPECT_TRUE(at::equal(split.labels, single.labels));
  }
}

TEST_F(TokenStoreTest, RepeatsTheSequenceWithoutAGap) {
  fill({4, 3});
  const auto [input, labels] = store_.gather({1, 1, 5, 1000, AtEnd::kRepeat});
  EXPECT_TRUE(at::equal(input, rows({5, 6, 0, 1, 2}, 1)));
  EXPECT_TRUE(at::equal(labels, rows({6, 0, 1, 2, 3}, 1)));
}

TEST_F(TokenStoreTest, FillsRowsBehindTheEndWithIgnoredLabels) {
  fill({8});
  const auto [input, labels] = store_.gather({1, 2, 3, 1000, AtEnd::kStop});
  EXPECT_TRUE(at::equal(input, rows({3, 4, 5, 0, 0, 0}, 2)));
  EXPECT_TRUE(at::equal(labels, rows({4, 5, 6, -100, -100, -100}, 2)));
}

TEST_F(TokenStoreTest, RefusesTokensThatAreNotThereYet) {
  fill({8});
  EXPECT_THROW(store_.gather({2, 1, 4, 1000, AtEnd::kMore}), std::invalid_argument);
  EXPECT_THROW(TokenStore().gather({0, 1, 4, 1000, AtEnd::kRepeat}),
               std::invalid_argument);
  EXPECT_THROW(store_.gather({-1, 1, 4, 1000, AtEnd::kMore}), std::invalid_argument);
  EXPECT_THROW(store_.gather({int64_t{1} << 62, 1, 4, 1000, AtEnd::kRepeat}),
               std::invalid_argument);
}

TEST_F(TokenStoreTest, NamesTheSampleOfAStrayId) {
  fill({10});
  try {
    store_.gather({0, 2, 4, 7, AtEnd::kMore});
    FAIL() << "accepted an id behind the vocabulary";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "sample 1, token 7 of the dataset has id 7, expected 0 <= id < 7 (the "
                 "model's vocabulary)");
  }
}

TEST_F(TokenStoreTest, FindsTheFileOfATokenAndForgetsFiles) {
  fill({3, 4});
  EXPECT_EQ(store_.shard_of(0), 0);
  EXPECT_EQ(store_.shard_of(2), 0);
  EXPECT_EQ(store_.shard_of(3), 1);
  EXPECT_EQ(store_.shard_of(7), 2);
  store_.truncate(1);
  EXPECT_EQ(store_.num_shards(), 1);
  EXPECT_EQ(store_.num_tokens(), 3);
}

TEST_F(TokenStoreTest, NoticesTokensThatChangedOnDisk) {
  const std::string path = write(0, 50);
  std::string bytes = read_file(path);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_file(path, bytes);
  fill({3});
  EXPECT_EQ(store_.first_damaged(), 1);
  store_.attach(path);
  EXPECT_EQ(store_.first_damaged(), 1);
  EXPECT_THROW(store_.gather({0, 1, 4, 1000, AtEnd::kMore}), DamagedShard);
  EXPECT_THROW(store_.gather({0, 1, 4, 1000, AtEnd::kMore}), DamagedShard);
}

TEST(CheckTokenIds, AcceptsIdsAndIgnoredLabelsOnly) {
  const auto input = at::tensor({0, 1, 2, 3}, at::kLong).view({2, 2});
  const auto labels = at::tensor({1, -100, 3, 4}, at::kLong).view({2, 2});
  check_token_ids(input, labels, 5);
  EXPECT_THROW(check_token_ids(labels, input, 5), std::invalid_argument);
  try {
    check_token_ids(input, labels, 4);
    FAIL() << "accepted label 4 of a vocabulary of 4";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(
        error.what(),
        "batch: labels row 1, position 1 has token id 4, expected 0 <= id < 4");
  }
  EXPECT_THROW(check_token_ids(input, labels.view({4}), 5), std::invalid_argument);
  EXPECT_THROW(check_token_ids(input.to(at::kInt), labels.to(at::kInt), 5),
               std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::data
