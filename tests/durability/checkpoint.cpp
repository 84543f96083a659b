#include "durability/checkpoint.h"

#include "base/errors.h"
#include "storage/checksum.h"
#include "storage/safetensors_file.h"

namespace torchtitan::durability {
namespace {

using namespace storage;

constexpr int64_t kThreads = 2;  // that share the blocks of a file

// The constants are those of splitmix64.
int64_t number_of(int64_t step, int64_t index) {
  uint64_t value = static_cast<uint64_t>(step) * 1'000'003 +
                   static_cast<uint64_t>(index) * 0x9E3779B97F4A7C15;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  return static_cast<int64_t>(value ^ (value >> 31));
}

// Of the rank's numbers, in the tensor.
int64_t begin_of(int64_t step, int64_t rank) {
  int64_t begin = 0;
  for (int64_t before = 0; before < rank; ++before) begin += numbers_of(step, before);
  return begin;
}

std::vector<int64_t> part_of_state(int64_t step, int64_t rank) {
  const int64_t begin = begin_of(step, rank);
  std::vector<int64_t> numbers(static_cast<size_t>(numbers_of(step, rank)));
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = number_of(step, begin + static_cast<int64_t>(i));
  }
  return numbers;
}

std::string file_of(int64_t rank) {
  return base::message("rank-", rank, ".safetensors");
}

}  // namespace

int64_t numbers_of(int64_t step, int64_t rank) {
  constexpr auto kOfBlock = static_cast<int64_t>(kHashedBlockBytes / sizeof(int64_t));
  const bool is_long = step % 16 == 8 && step / 16 % kNumRanks == rank;
  return 1500 + (is_long ? 2 * kOfBlock : 0);
}

FileRecord write_part(const std::string& staging, int64_t rank, int64_t step) {
  const std::vector<int64_t> numbers = part_of_state(step, rank);
  SafetensorsWriter writer(staging + "/" + file_of(rank),
                           {{"w", Dtype::kI64, {numbers_of(step, rank)}}}, {},
                           kThreads);
  writer.append("w", std::as_bytes(std::span(numbers)));
  return writer.finish();
}

Manifest manifest_of(int64_t step, const std::string& id, const std::string& parent,
                     int64_t sequence, const std::vector<FileRecord>& files) {
  std::vector<StoredBox> boxes;
  for (int64_t rank = 0; rank < kNumRanks; ++rank) {
    boxes.push_back({rank, "w", {{begin_of(step, rank)}, {numbers_of(step, rank)}}});
  }
  return {
      .step = step,
      .id = id,
      .parent = parent,
      .sequence = sequence,
      .content = Content::kTraining,
      .world_size = kNumRanks,
      .config_hash = "",
      .torch_version = "",
      .torchtitan_cpp_version = "",
      .files = files,
      .tensors =
          {{"w", "model", Dtype::kI64, {begin_of(step, kNumRanks)}, std::move(boxes)}},
      .scalars = base::Json::Object{},
      .gathered = base::Json::Object{}};
}

bool load_part(const std::string& path, const Manifest& manifest, int64_t rank) {
  const SafetensorsReader reader(
      VerifiedFile(path + "/" + file_of(rank),
                   manifest.files[static_cast<size_t>(rank)].blocks, kThreads));
  const int64_t count = numbers_of(manifest.step, rank);
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  reader.read_box("w", {{0}, {count}},
                  {.memory = std::as_writable_bytes(std::span(numbers)),
                   .shape = {count},
                   .offset = {0}});
  return numbers == part_of_state(manifest.step, rank);
}

}  // namespace torchtitan::durability
