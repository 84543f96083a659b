#include "storage/verified_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <vector>

#include "storage/checksum.h"
#include "storage/hashed_file.h"
#include "storage/temporary_folder.h"

namespace torchtitan::storage {
namespace {

constexpr auto kBlock = static_cast<int64_t>(kHashedBlockBytes);
constexpr int64_t kSize = 5 * kBlock + 1234;

std::vector<std::byte> random_bytes(int64_t size) {
  std::mt19937 random(7);
  std::vector<std::byte> bytes(static_cast<size_t>(size));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

class VerifiedFileTest : public testing::Test {
 protected:
  FileRecord write(std::span<const std::byte> data) {
    std::filesystem::remove(path_);
    HashedFile file(path_, 1);
    file.write(data);
    return file.finish();
  }

  const TemporaryFolder folder_;
  const std::string path_ = folder_ / "data";
  const std::vector<std::byte> bytes_ = random_bytes(kSize);
  const FileRecord record_ = write(bytes_);
};

TEST_F(VerifiedFileTest, GivesAnyRangeInAnyOrder) {
  std::mt19937 random(9);
  for (const int64_t num_threads : {1, 3}) {
    VerifiedFile file(path_, record_.blocks, num_threads);
    EXPECT_EQ(file.size(), kSize);
    for (int trial = 0; trial < 60; ++trial) {
      const auto begin = static_cast<int64_t>(random() % kSize);
      const int64_t most = trial % 2 == 0 ? kSize - begin : 1 + (kSize - begin) / 50;
      const auto size = static_cast<int64_t>(random() % static_cast<size_t>(most + 1));
      std::vector<std::byte> out(static_cast<size_t>(size));
      file.read_at(begin, out);
      EXPECT_TRUE(std::equal(out.begin(), out.end(), bytes_.begin() + begin));
    }
    std::vector<std::byte> all(static_cast<size_t>(kSize));
    file.read_at(0, all);
    EXPECT_EQ(all, bytes_);
    EXPECT_THROW(file.read_at(1, all), std::invalid_argument);
  }
}

TEST_F(VerifiedFileTest, RefusesAFlippedBitWhoeverReadsAPartOfItsBlockAndNobodyElse) {
  std::mt19937 random(10);
  for (int trial = 0; trial < 20; ++trial) {
    auto bad = bytes_;
    const auto at = static_cast<int64_t>(random() % kSize);
    bad[static_cast<size_t>(at)] ^= std::byte{1} << random() % 8;
    write(bad);
    VerifiedFile file(path_, record_.blocks, 2);
    for (int64_t block = 0; block * kBlock < kSize; ++block) {
      const int64_t begin = block * kBlock;
      std::vector<std::byte> part(10),
          whole(static_cast<size_t>(std::min(kBlock, kSize - begin)));
      if (at / kBlock == block) {
        EXPECT_THROW(file.read_at(begin + 5, part), std::invalid_argument);
        EXPECT_THROW(file.read_at(begin + 5, part), std::invalid_argument);
        EXPECT_THROW(file.read_at(begin, whole), std::invalid_argument);
      } else {
        EXPECT_NO_THROW(file.read_at(begin + 5, part));
        EXPECT_NO_THROW(file.read_at(begin, whole));
      }
    }
    std::vector<std::byte> all(static_cast<size_t>(kSize));
    EXPECT_THROW(file.read_at(0, all), std::invalid_argument);
  }
}

TEST_F(VerifiedFileTest, RefusesAFileOfAnotherLength) {
  for (const int64_t size : {int64_t{0}, kSize - kBlock, kSize + kBlock}) {
    write(random_bytes(size));
    EXPECT_THROW(VerifiedFile(path_, record_.blocks, 1), std::invalid_argument);
  }
  for (const int64_t size : {kSize - 1, kSize + 1}) {
    write(random_bytes(size));
    VerifiedFile file(path_, record_.blocks, 1);
    std::byte last;
    EXPECT_THROW(file.read_at(5 * kBlock, std::span(&last, 1)), std::invalid_argument);
  }
}

TEST_F(VerifiedFileTest, ComparesNothingWithoutBlocks) {
  auto bad = bytes_;
  bad[3] ^= std::byte{1};
  write(bad);
  VerifiedFile file(path_, "", 1);
  std::vector<std::byte> all(static_cast<size_t>(kSize));
  file.read_at(0, all);
  EXPECT_EQ(all, bad);
}

}  // namespace
}  // namespace torchtitan::storage
