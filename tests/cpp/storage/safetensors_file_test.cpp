#include "storage/safetensors_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <numeric>
#include <random>

#include "storage/checksum.h"
#include "storage/temporary_folder.h"

namespace torchtitan::storage {
namespace {

std::vector<int32_t> iota(int64_t count) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

FileRecord write_one(const std::string& path, const std::vector<int64_t>& shape) {
  const std::vector<int32_t> values = iota(base::checked_product(shape));
  SafetensorsWriter writer(path, {{"w", Dtype::kI32, shape}}, {}, 1);
  writer.append("w", std::as_bytes(std::span(values)));
  return writer.finish();
}

std::string error_of(const std::string& path) {
  try {
    SafetensorsReader reader(path);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(SafetensorsFile, RecordMatchesTheFileOnDisk) {
  const TemporaryFolder folder;
  const FileRecord record = write_one(folder / "a.safetensors", {5, 7});
  const FileRecord found = hash_file(folder.path(), "a.safetensors");
  EXPECT_EQ(record.name, "a.safetensors");
  EXPECT_EQ(record.size_bytes, found.size_bytes);
  EXPECT_EQ(record.sha256, found.sha256);
  EXPECT_EQ(record.blocks, found.blocks);
  EXPECT_EQ(sha256(std::as_bytes(std::span(record.blocks))), record.sha256);
}

// Any box, from any place to any place, against an index computed element by element.
TEST(SafetensorsFile, CopiesAnyBoxToItsPlaceAndNothingElse) {
  const TemporaryFolder folder;
  std::mt19937 random(1);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int trial = 0; trial < 300; ++trial) {
    const auto num_dims = static_cast<size_t>(pick(0, 4));
    std::vector<int64_t> shape, memory_shape, memory_offset;
    Box box;
    for (size_t d = 0; d < num_dims; ++d) {
      shape.push_back(pick(1, 6));
      box.offset.push_back(pick(0, shape[d]));
      box.size.push_back(pick(0, shape[d] - box.offset[d]));
      memory_offset.push_back(pick(0, 2));
      memory_shape.push_back(memory_offset[d] + box.size[d] + pick(0, 2));
    }
    const std::string path = folder / std::to_string(trial);
    write_one(path, shape);
    std::vector<int32_t> memory(
        static_cast<size_t>(base::checked_product(memory_shape)), -1);
    std::vector<int32_t> expected = memory;
    const int64_t count = base::checked_product(box.size);
    for (int64_t i = 0; i < count; ++i) {
      int64_t rest = i, from = 0, to = 0, from_stride = 1, to_stride = 1;
      for (size_t d = num_dims; d-- > 0;) {
        const int64_t index = rest % box.size[d];
        rest /= box.size[d];
        from += (box.offset[d] + index) * from_stride;
        to += (memory_offset[d] + index) * to_stride;
        from_stride *= shape[d];
        to_stride *= memory_shape[d];
      }
      expected[static_cast<size_t>(to)] = static_cast<int32_t>(from);
    }
    SafetensorsReader(path).read_box(
        "w", box,
        {std::as_writable_bytes(std::span(memory)), memory_shape, memory_offset});
    EXPECT_EQ(memory, expected);
  }
}

TEST(SafetensorsFile, ReadsColumnsOfAMatrixLargerThanItsWindow) {
  const TemporaryFolder folder;
  for (const int64_t columns : {1000, 100000}) {  // through the window, and past it
    const std::string path = folder / std::to_string(columns);
    const int64_t rows = 1000000 / columns;
    write_one(path, {rows, columns});
    std::vector<int32_t> memory(static_cast<size_t>(rows * 3));
    SafetensorsReader(path).read_box(
        "w", {{0, columns - 3}, {rows, 3}},
        {std::as_writable_bytes(std::span(memory)), {rows, 3}, {0, 0}});
    for (int64_t i = 0; i < rows * 3; ++i) {
      ASSERT_EQ(memory[static_cast<size_t>(i)], i / 3 * columns + columns - 3 + i % 3);
    }
  }
}

TEST(SafetensorsFile, RefusesABoxOutsideTheTensorOrTheMemory) {
  const TemporaryFolder folder;
  const std::string path = folder / "a";
  write_one(path, {4});
  const SafetensorsReader reader(path);
  std::vector<std::byte> memory(16);
  EXPECT_THROW(reader.read_box("w", {{3}, {2}}, {memory, {4}, {0}}),
               std::invalid_argument);
  EXPECT_THROW(reader.read_box("w", {{-1}, {2}}, {memory, {4}, {0}}),
               std::invalid_argument);
  EXPECT_THROW(reader.read_box("w", {{0}, {2}}, {memory, {4}, {3}}),
               std::invalid_argument);
  EXPECT_THROW(reader.read_box("w", {{0}, {2}}, {memory, {5}, {0}}),
               std::invalid_argument);
  EXPECT_THROW(reader.read_box("w", {{0, 0}, {2, 1}}, {memory, {4}, {0}}),
               std::invalid_argument);
  EXPECT_THROW(reader.read_box("v", {{0}, {2}}, {memory, {4}, {0}}),
               std::invalid_argument);
}

TEST(SafetensorsFile, RefusesEveryTruncationAndExtension) {
  const TemporaryFolder folder;
  const std::string path = folder / "a";
  const int64_t size = write_one(path, {9}).size_bytes;
  ASSERT_EQ(error_of(path), "accepted");
  std::filesystem::resize_file(path, static_cast<uintmax_t>(size + 1));
  EXPECT_NE(error_of(path), "accepted");
  for (int64_t length = size - 1; length >= 0; --length) {
    std::filesystem::resize_file(path, static_cast<uintmax_t>(length));
    EXPECT_NE(error_of(path), "accepted") << length;
  }
}

TEST(SafetensorsFile, EveryFlippedBitIsFoundByTheVerifyingReader) {
  const TemporaryFolder folder;
  const FileRecord record = write_one(folder / "a", {9});
  const std::string bytes = read_text(folder / "a", 1 << 20);
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ 1 << bit % 8);
    const std::string path = folder / ("flipped" + std::to_string(bit));
    write_text(path, flipped);
    EXPECT_THROW(SafetensorsReader(VerifiedFile(path, record.blocks, 1)),
                 std::invalid_argument);
    // A wrong length of the header is seen without checksums too.
    if (bit < 64) {
      EXPECT_NE(error_of(path), "accepted") << bit;
    }
  }
  EXPECT_EQ(SafetensorsReader(VerifiedFile(folder / "a", record.blocks, 1))
                .header()
                .entries.size(),
            1u);
}

TEST(SafetensorsFile, WriterTakesExactlyWhatItAnnounced) {
  const TemporaryFolder folder;
  const std::vector<std::byte> data(8);
  SafetensorsWriter writer(folder / "a",
                           {{"x", Dtype::kI32, {2}}, {"y", Dtype::kU8, {8}}}, {}, 1);
  EXPECT_THROW(writer.append("y", data), std::invalid_argument);
  EXPECT_THROW(writer.append("x", std::span(data).first(4)), std::invalid_argument);
  writer.append("x", data);
  EXPECT_THROW(writer.finish(), std::invalid_argument);
  writer.append("y", data);
  EXPECT_THROW(writer.append("z", data), std::invalid_argument);
  EXPECT_GT(writer.finish().size_bytes, 16);
  EXPECT_THROW(SafetensorsWriter(folder / "a", {}, {}, 1), FileError);  // exists
}

TEST(SafetensorsFile, RefusesWhatIsNoRegularFile) {
  const TemporaryFolder folder;
  EXPECT_THROW(SafetensorsReader(folder / "missing"), FileError);
  EXPECT_THROW(SafetensorsReader(folder.path()), std::invalid_argument);
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(SafetensorsReader(folder / "pipe"), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::storage
