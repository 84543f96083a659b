// SHA-256 (FIPS 180-4), streaming. Uses the SHA instructions of x86 CPUs when there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace torchtitan::storage {

class Sha256 {
 public:
  Sha256();

  void update(std::span<const std::byte> data);

  // 64 lowercase hexadecimal digits of all bytes so far. The object is spent then.
  std::string finish();

  // Of two byte sequences, hashed side by side: that takes little longer than one.
  static std::pair<std::string, std::string> of_two(std::span<const std::byte> one,
                                                    std::span<const std::byte> other);

 private:
  void absorb(const std::byte* blocks, size_t num_blocks);

  std::array<uint32_t, 8> state_;
  std::array<std::byte, 64> pending_;
  size_t num_pending_ = 0;
  uint64_t num_bytes_ = 0;
};

std::string sha256(std::span<const std::byte> data);

// A file of a checkpoint is hashed in blocks of this size, the last one shorter, so
// that several threads can, and a part of it can be compared alone. A terabyte has 16
// MB of hashes in the manifest. Files have been written with this size: it cannot
// change.
inline constexpr size_t kHashedBlockBytes = size_t{4} << 20;

inline size_t num_hashed_blocks(int64_t size_bytes) {
  return (static_cast<size_t>(size_bytes) + kHashedBlockBytes - 1) / kHashedBlockBytes;
}

// Of a block: the SHA-256 of the 128 digits of the SHA-256 of its first size / 2 bytes
// and of that of the others.
std::string block_sha256(std::span<const std::byte> block);

// Adds whole blocks of 64 bytes to the state. The two ways give equal states;
// has_sha_instructions() says whether the second one may be called, and the third one,
// which adds as many blocks to each of two states.
void absorb_portable(uint32_t* state, const std::byte* blocks, size_t num_blocks);
void absorb_with_instructions(uint32_t* state, const std::byte* blocks,
                              size_t num_blocks);
void absorb_two_with_instructions(std::array<uint32_t*, 2> states,
                                  std::array<const std::byte*, 2> blocks,
                                  size_t num_blocks);
bool has_sha_instructions();

// The 64 round constants.
extern const std::array<uint32_t, 64> kSha256Rounds;

}  // namespace torchtitan::storage
