#include "data/token_shard.h"

#include <gtest/gtest.h>

#include <numeric>

#include "data/temporary_folder.h"

namespace torchtitan::data {
namespace {

std::vector<int64_t> read_all(const TokenShard& shard) {
  std::vector<int64_t> tokens(static_cast<size_t>(shard.num_tokens()));
  shard.copy(0, tokens);
  return tokens;
}

TEST(TokenShard, GivesBackWhatWasWrittenInBothWidths) {
  const TemporaryFolder folder;
  for (const int64_t vocab :
       {int64_t{1} << 16, (int64_t{1} << 16) + 1, int64_t{1} << 32}) {
    const std::vector<int64_t> ids = {0, 7, vocab - 1, 3};
    TokenShardWriter writer(vocab);
    writer.append(ids, "a");
    writer.append(ids, "b");
    EXPECT_EQ(writer.num_tokens(), 8);
    writer.write(folder.file("tokens"), "note {}");

    const TokenShard shard(folder.file("tokens"));
    shard.verify();
    EXPECT_EQ(shard.note(), "note {}");
    EXPECT_EQ(read_all(shard),
              (std::vector<int64_t>{0, 7, vocab - 1, 3, 0, 7, vocab - 1, 3}));
    std::vector<int64_t> middle(2);
    shard.copy(3, middle);
    EXPECT_EQ(middle, (std::vector<int64_t>{3, 0}));
    EXPECT_THROW(shard.copy(7, middle), std::invalid_argument);
  }
}

TEST(TokenShard, UsesTwoBytesForVocabulariesThatFit) {
  const TemporaryFolder folder;
  const std::vector<int64_t> ids(1000, 5);
  for (const auto& [vocab, bytes] : {std::pair{65536, 2000}, {65537, 4000}}) {
    TokenShardWriter writer(vocab);
    writer.append(ids, "a");
    writer.write(folder.file("tokens"), "");
    EXPECT_EQ(read_file(folder.file("tokens")).size(), static_cast<size_t>(64 + bytes));
  }
}

TEST(TokenShard, NoticesEveryFlippedBitAndEveryTruncation) {
  const TemporaryFolder folder;
  TokenShardWriter writer(300);
  std::vector<int64_t> ids(31);
  std::iota(ids.begin(), ids.end(), 200);
  writer.append(ids, "a");
  writer.write(folder.file("good"), "cursor 12");
  const std::string good = read_file(folder.file("good"));
  const auto damaged = [&](const std::string& bytes) {
    write_file(folder.file("bad"), bytes);
    try {
      TokenShard(folder.file("bad")).verify();
    } catch (const DamagedShard&) {
      return true;
    }
    return false;
  };
  EXPECT_FALSE(damaged(good));
  for (size_t byte = 0; byte < good.size(); ++byte) {
    const bool padding = byte >= 64 + 9 && byte < 128;
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[byte] = static_cast<char>(bad[byte] ^ (1 << bit));
      EXPECT_EQ(damaged(bad), !padding) << "byte " << byte << " bit " << bit;
    }
    EXPECT_TRUE(damaged(good.substr(0, byte)));
  }
  EXPECT_TRUE(damaged(good + "x"));
}

TEST(TokenShard, NamesDocumentAndTokenOfAStrayId) {
  for (const int64_t stray :
       {int64_t{-1}, int64_t{10}, int64_t{1} << 31, int64_t{1} << 40}) {
    TokenShardWriter writer(10);
    try {
      writer.append(std::vector<int64_t>{1, 2, stray}, "a.json:7");
      FAIL() << "accepted " << stray;
    } catch (const std::invalid_argument& error) {
      EXPECT_EQ(std::string(error.what()), "a.json:7: token 2 of the document has id " +
                                               std::to_string(stray) +
                                               ", but the tokenizer's ids are 0 to 9");
    }
    EXPECT_EQ(writer.num_tokens(), 0);
  }
  EXPECT_THROW(TokenShardWriter(0), std::invalid_argument);
}

TEST(TokenShard, LeavesNothingBehindWhenTheFolderIsMissing) {
  const TemporaryFolder folder;
  TokenShardWriter writer(10);
  EXPECT_THROW(writer.write(folder.file("no/such/tokens"), ""), std::runtime_error);
  EXPECT_THROW(TokenShard(folder.file("absent")), std::runtime_error);
  writer.write(folder.file("tokens"), "");
  writer.write(folder.file("tokens"), "");
  EXPECT_EQ(folder.num_files(), 1u);
}

}  // namespace
}  // namespace torchtitan::data
