#include "storage/hashed_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <vector>

#include "storage/checksum.h"
#include "storage/crc32.h"
#include "storage/temporary_folder.h"

namespace torchtitan::storage {
namespace {

// A file system in memory takes the caller's memory as it is, a disk takes buffers.
class HashedFileIn : public testing::TestWithParam<std::filesystem::path> {};
INSTANTIATE_TEST_SUITE_P(FileSystems, HashedFileIn,
                         testing::Values(std::filesystem::temp_directory_path(),
                                         "/dev/shm", "/var/tmp"));

TEST_P(HashedFileIn, HasSizeHashAndContentOfAllThatWasWrittenInOrder) {
  const TemporaryFolder folder(GetParam());
  const std::string path = folder / "data";
  std::mt19937 random(5);
  std::vector<std::byte> all;
  HashedFile file(path, 3);
  // Within a block, up to the end of one, over many; each gone once it is written.
  constexpr size_t kBlock = kHashedBlockBytes;
  for (const size_t size : {size_t{0}, size_t{3}, 5 * kBlock, size_t{70}, kBlock - 73,
                            kBlock, size_t{65}, 3 * kBlock}) {
    std::vector<std::byte> part(size);
    for (std::byte& byte : part) byte = static_cast<std::byte>(random());
    if (size % 2 == 0) {
      EXPECT_EQ(file.write_with_crc(part), crc32(part));
    } else {
      file.write(part);
    }
    all.insert(all.end(), part.begin(), part.end());
    std::fill(part.begin(), part.end(), std::byte{0});
    EXPECT_EQ(file.num_bytes(), static_cast<int64_t>(all.size()));
  }
  const FileRecord record = file.finish();
  EXPECT_EQ(record.name, "data");
  EXPECT_EQ(record.size_bytes, static_cast<int64_t>(all.size()));
  std::string blocks;
  for (auto left = std::span<const std::byte>(all); !left.empty();) {
    const auto block = left.first(std::min(kBlock, left.size()));
    blocks += block_sha256(block);
    left = left.subspan(block.size());
  }
  EXPECT_EQ(record.blocks, blocks);
  EXPECT_EQ(record.sha256, sha256(std::as_bytes(std::span(blocks))));
  EXPECT_EQ(hash_file_whole(folder.path(), "data").sha256, sha256(all));
  const FileRecord found = hash_file(folder.path(), "data");
  EXPECT_EQ(found.size_bytes, record.size_bytes);
  EXPECT_EQ(found.sha256, record.sha256);
  EXPECT_EQ(found.blocks, record.blocks);
}

TEST_P(HashedFileIn, TellsThatWritingFailedInAnyThread) {
  // In a child: the limit is that of the process.
  const auto write_too_much = [] {
    const TemporaryFolder folder(GetParam());
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{kHashedBlockBytes, kHashedBlockBytes};
    setrlimit(RLIMIT_FSIZE, &limit);
    HashedFile file(folder / "data", 2);
    try {
      file.write(std::vector<std::byte>(4 * kHashedBlockBytes));
      file.finish();
    } catch (const FileError& error) {
      return error.code();
    }
    return 0;
  };
  EXPECT_EXIT(std::exit(write_too_much()), testing::ExitedWithCode(EFBIG), "");
}

TEST_P(HashedFileIn, TakesManySmallPartsAndCanBeGivenUp) {
  const TemporaryFolder folder(GetParam());
  const std::vector<std::byte> part(kHashedBlockBytes / 7, std::byte{3});
  {
    HashedFile file(folder / "given_up", 2);
    for (int i = 0; i < 40; ++i) file.write(part);
  }
  HashedFile file(folder / "data", 2);
  std::vector<std::byte> all;
  for (int i = 0; i < 40; ++i) {
    file.write(part);
    all.insert(all.end(), part.begin(), part.end());
  }
  EXPECT_EQ(file.finish().size_bytes, static_cast<int64_t>(all.size()));
  EXPECT_EQ(hash_file_whole(folder.path(), "data").sha256, sha256(all));
}

}  // namespace
}  // namespace torchtitan::storage
