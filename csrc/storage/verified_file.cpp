#include "storage/verified_file.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/errors.h"
#include "storage/checksum.h"
#include "storage/parallel_for.h"

namespace torchtitan::storage {
namespace {

constexpr auto kBlock = static_cast<int64_t>(kHashedBlockBytes);
constexpr size_t kDigits = 64;  // of a hash

}  // namespace

VerifiedFile::VerifiedFile(const std::string& path, std::string blocks,
                           int64_t num_threads)
    : file_(File::open_for_reading(path)), size_(file_.size()),
      blocks_(std::move(blocks)), num_threads_(num_threads) {
  base::check_value(
      blocks_.empty() || blocks_.size() == kDigits * num_hashed_blocks(size_), path,
      ": has ", size_, " bytes, expected ", blocks_.size() / kDigits, " blocks of ",
      kBlock, " bytes");
}

void VerifiedFile::read_at(int64_t offset, std::span<std::byte> out) {
  if (blocks_.empty()) return file_.read_at(offset, out);
  const auto end = offset + static_cast<int64_t>(out.size());
  base::check_value(offset >= 0 && end <= size_, path(), ": file ends at byte ", size_,
                    ", expected ", end);
  if (out.empty()) return;
  std::vector<int64_t> whole;
  for (int64_t block = offset / kBlock; block * kBlock < end; ++block) {
    const int64_t begin = block * kBlock, next = std::min(begin + kBlock, size_);
    if (begin >= offset && next <= end) {
      whole.push_back(block);
      continue;
    }
    const int64_t from = std::max(begin, offset), to = std::min(next, end);
    std::memcpy(out.data() + (from - offset), keep(block).bytes.data() + (from - begin),
                static_cast<size_t>(to - from));
  }
  parallel_for(whole.size(), num_threads_, [&](size_t i) {
    const int64_t begin = whole[i] * kBlock;
    read_block(whole[i],
               out.subspan(static_cast<size_t>(begin - offset),
                           static_cast<size_t>(std::min(kBlock, size_ - begin))));
  });
}

void VerifiedFile::read_block(int64_t block, std::span<std::byte> out) const {
  file_.read_at(block * kBlock, out);
  const auto expected =
      std::string_view(blocks_).substr(static_cast<size_t>(block) * kDigits, kDigits);
  const std::string found = block_sha256(out);
  base::check_value(found == expected, path(), ": bytes ", block * kBlock, " to ",
                    block * kBlock + static_cast<int64_t>(out.size()),
                    ": expected SHA-256 ", expected, ", found ", found);
}

const VerifiedFile::Kept& VerifiedFile::keep(int64_t block) {
  auto& [last, before] = kept_;
  if (last.block == block) return last;
  std::swap(last, before);
  if (last.block == block) return last;
  last.block = -1;
  last.bytes.resize(static_cast<size_t>(std::min(kBlock, size_ - block * kBlock)));
  read_block(block, last.bytes);
  last.block = block;
  return last;
}

}  // namespace torchtitan::storage
