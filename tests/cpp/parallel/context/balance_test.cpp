// Every token is dealt out once, and the ranks get about the same work.
#include "parallel/context/balance.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "ops/fused_attention.h"

namespace torchtitan::parallel::context {
namespace {

std::vector<int64_t> numbers(const at::Tensor& x) {
  const auto flat = x.contiguous().flatten();
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + x.numel()};
}

at::Tensor dealt(Balance balance, int64_t ranks, int64_t tokens,
                 const at::Tensor& starts = {}) {
  return deal_out(balance, ranks, tokens, starts, at::kCPU);
}

// Blocks of scores that each rank computes, over all keys.
std::vector<int64_t> work(const at::Tensor& positions, const at::Tensor& starts) {
  std::vector<int64_t> blocks;
  for (int64_t rank = 0; rank < positions.size(0); ++rank) {
    int64_t sum = 0;
    for (int64_t other = 0; other < positions.size(0); ++other) {
      sum += ops::fused::attention_blocks({positions[rank], starts}, positions[other]);
    }
    blocks.push_back(sum);
  }
  return blocks;
}

double imbalance(const std::vector<int64_t>& work) {
  const auto [least, most] = std::minmax_element(work.begin(), work.end());
  return static_cast<double>(*most - *least) / static_cast<double>(*most);
}

// Two rows of documents of growing length.
at::Tensor documents(int64_t length) {
  const auto starts = at::empty({2, length}, at::kLong);
  for (int64_t row = 0; row < 2; ++row) {
    int64_t first = 0, size = 20 + 100 * row;
    for (int64_t p = 0; p < length; ++p) {
      if (p == first + size) {
        first = p;
        size += 150;
      }
      starts[row][p].fill_(first);
    }
  }
  return starts;
}

TEST(Deal, HeadTailGivesEachRankAChunkAndItsMirrorImage) {
  EXPECT_EQ(numbers(dealt(Balance::kHeadTail, 3, 4)),
            (std::vector<int64_t>{0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7}));
}

TEST(Deal, InOrderGivesStretches) {
  EXPECT_EQ(numbers(dealt(Balance::kInOrder, 2, 3)),
            (std::vector<int64_t>{0, 1, 2, 3, 4, 5}));
}

TEST(Deal, ByWorkGoesRoundAndBackFromTheDearestBlock) {
  // Blocks of one token, of which the last sees most.
  EXPECT_EQ(numbers(dealt(Balance::kByWork, 2, 2)), (std::vector<int64_t>{0, 3, 1, 2}));
  // Documents [0], [1, 2, 3]: tokens see 1, 1, 2 and 3 keys.
  const auto starts = at::tensor({0, 1, 1, 1}, at::kLong).unsqueeze(0);
  EXPECT_EQ(numbers(dealt(Balance::kByWork, 2, 2, starts)),
            (std::vector<int64_t>{1, 3, 0, 2}));
}

TEST(Deal, EveryTokenIsDealtOutOnce) {
  for (const Balance balance :
       {Balance::kHeadTail, Balance::kInOrder, Balance::kByWork}) {
    for (const int64_t ranks : {2, 3, 4, 8}) {
      for (const int64_t tokens : {2, 14, 384, 398}) {
        for (const auto& starts : {at::Tensor(), documents(ranks * tokens)}) {
          const auto positions = dealt(balance, ranks, tokens, starts);
          EXPECT_TRUE(at::equal(std::get<0>(positions.flatten().sort()),
                                at::arange(ranks * tokens)));
          EXPECT_TRUE(
              positions.diff(1, 1).gt(0).all().item<bool>());  // rising on each rank
        }
      }
    }
  }
}

TEST(Deal, CausalWorkDiffersByTwoPercentAtMost) {
  for (const int64_t ranks : {2, 4, 8}) {
    for (const int64_t length : {2048, 8192}) {
      const int64_t tokens = length / ranks;
      EXPECT_LE(imbalance(work(dealt(Balance::kHeadTail, ranks, tokens), {})), 0.02);
      EXPECT_LE(imbalance(work(dealt(Balance::kByWork, ranks, tokens), {})), 0.02);
      EXPECT_GT(imbalance(work(dealt(Balance::kInOrder, ranks, tokens), {})), 0.5);
    }
  }
}

TEST(Deal, ByWorkBalancesDocumentsBetterThanHeadTail) {
  for (const int64_t ranks : {2, 4}) {
    const int64_t tokens = 8192 / ranks;
    const auto starts = documents(8192);
    const auto by_work =
        imbalance(work(dealt(Balance::kByWork, ranks, tokens, starts), starts));
    EXPECT_LT(by_work, 0.05);
    EXPECT_LT(by_work,
              imbalance(work(dealt(Balance::kHeadTail, ranks, tokens), starts)));
  }
}

TEST(Deal, RefusesWhatCannotBeDealtOut) {
  EXPECT_THROW(dealt(Balance::kHeadTail, 2, 3), c10::ValueError);
  EXPECT_THROW(dealt(Balance::kByWork, 2, 4, documents(7)), c10::ValueError);
  EXPECT_THROW(parse_balance("tail"), c10::ValueError);
}

}  // namespace
}  // namespace torchtitan::parallel::context
