#include "storage/checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace torchtitan::storage {
namespace {

constexpr size_t kBlock = 64;

uint32_t load_big_endian(const std::byte* bytes) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word = word << 8 | std::to_integer<uint32_t>(bytes[i]);
  return word;
}

}  // namespace

const std::array<uint32_t, 64> kSha256Rounds{
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
    0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
    0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
    0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
    0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
    0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
    0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
    0xc67178f2};

void absorb_portable(uint32_t* state, const std::byte* blocks, size_t num_blocks) {
  using std::rotr;
  for (; num_blocks > 0; --num_blocks, blocks += kBlock) {
    std::array<uint32_t, 64> w;
    for (size_t t = 0; t < 16; ++t) w[t] = load_big_endian(blocks + 4 * t);
    for (size_t t = 16; t < 64; ++t) {
      const uint32_t x = w[t - 15], y = w[t - 2];
      w[t] = w[t - 16] + (rotr(x, 7) ^ rotr(x, 18) ^ x >> 3) + w[t - 7] +
             (rotr(y, 17) ^ rotr(y, 19) ^ y >> 10);
    }
    auto [a, b, c, d, e, f, g, h] =
        std::to_array({state[0], state[1], state[2], state[3], state[4], state[5],
                       state[6], state[7]});
    for (size_t t = 0; t < 64; ++t) {
      const uint32_t t1 = h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) +
                          ((e & f) ^ (~e & g)) + kSha256Rounds[t] + w[t];
      const uint32_t t2 =
          (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1;
      d = c, c = b, b = a, a = t1 + t2;
    }
    const std::array<uint32_t, 8> change{a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < 8; ++i) state[i] += change[i];
  }
}

Sha256::Sha256()
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {}

void Sha256::absorb(const std::byte* blocks, size_t num_blocks) {
  static const bool fast = has_sha_instructions();
  const auto function = fast ? absorb_with_instructions : absorb_portable;
  function(state_.data(), blocks, num_blocks);
}

void Sha256::update(std::span<const std::byte> data) {
  num_bytes_ += data.size();
  if (num_pending_ > 0) {
    const size_t taken = std::min(kBlock - num_pending_, data.size());
    std::copy_n(data.begin(), taken, pending_.begin() + num_pending_);
    num_pending_ += taken;
    data = data.subspan(taken);
    if (num_pending_ < kBlock) return;
    absorb(pending_.data(), 1);
  }
  absorb(data.data(), data.size() / kBlock);
  num_pending_ = data.size() % kBlock;
  std::copy_n(data.end() - num_pending_, num_pending_, pending_.begin());
}

std::string Sha256::finish() {
  const uint64_t num_bits = num_bytes_ * 8;
  // One bit, zeros up to 8 bytes short of a block, the length in bits.
  std::array<std::byte, 2 * kBlock> tail{std::byte{0x80}};
  const size_t size = (num_pending_ < kBlock - 8 ? kBlock : 2 * kBlock) - num_pending_;
  for (size_t i = 0; i < 8; ++i) {
    tail[size - 1 - i] = static_cast<std::byte>(num_bits >> (8 * i));
  }
  update(std::span(tail).first(size));
  constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (const uint32_t word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4)
      text.push_back(kHex[word >> shift & 15]);
  }
  return text;
}

std::pair<std::string, std::string> Sha256::of_two(std::span<const std::byte> one,
                                                   std::span<const std::byte> other) {
  static const bool fast = has_sha_instructions();
  Sha256 first, second;
  if (fast) {
    const size_t common = std::min(one.size(), other.size()) / kBlock * kBlock;
    absorb_two_with_instructions({first.state_.data(), second.state_.data()},
                                 {one.data(), other.data()}, common / kBlock);
    first.num_bytes_ = second.num_bytes_ = common;
    one = one.subspan(common), other = other.subspan(common);
  }
  first.update(one), second.update(other);
  return {first.finish(), second.finish()};
}

std::string block_sha256(std::span<const std::byte> block) {
  const size_t half = block.size() / 2;
  const auto [first, second] = Sha256::of_two(block.first(half), block.subspan(half));
  const std::string digits = first + second;
  return sha256(std::as_bytes(std::span(digits)));
}

std::string sha256(std::span<const std::byte> data) {
  Sha256 hash;
  hash.update(data);
  return hash.finish();
}

}  // namespace torchtitan::storage
