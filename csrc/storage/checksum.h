// SHA-256 (FIPS 180-4), streaming. Uses the SHA instructions of x86 CPUs when there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace torchtitan::storage {

class Sha256 {
 public:
  Sha256();

  void update(std::span<const std::byte> data);

  // 64 lowercase hexadecimal digits of all bytes so far. The object is spent then.
  std::string finish();

 private:
  void absorb(const std::byte* blocks, size_t num_blocks);

  std::array<uint32_t, 8> state_;
  std::array<std::byte, 64> pending_;
  size_t num_pending_ = 0;
  uint64_t num_bytes_ = 0;
};

std::string sha256(std::span<const std::byte> data);

// Adds whole blocks of 64 bytes to the state. The two ways give equal states;
// has_sha_instructions() says whether the second one may be called.
void absorb_portable(uint32_t* state, const std::byte* blocks, size_t num_blocks);
void absorb_with_instructions(uint32_t* state, const std::byte* blocks,
                              size_t num_blocks);
bool has_sha_instructions();

// The 64 round constants.
extern const std::array<uint32_t, 64> kSha256Rounds;

}  // namespace torchtitan::storage
