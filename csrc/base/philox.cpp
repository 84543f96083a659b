#include "base/philox.h"

namespace torchtitan::base {
namespace {

// Multipliers and key increments (golden ratio and sqrt(3) - 1) of the paper.
constexpr uint64_t kMultiplier0 = 0xD2511F53;
constexpr uint64_t kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9;
constexpr uint32_t kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 10;

constexpr uint32_t low_word(uint64_t value) { return static_cast<uint32_t>(value); }
constexpr uint32_t high_word(uint64_t value) {
  return static_cast<uint32_t>(value >> 32);
}

double open_unit_interval(uint32_t low, uint32_t high) {
  const uint64_t bits = ((uint64_t{high} << 32) | low) >> 12;
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

}  // namespace

PhiloxBlock philox4x32(PhiloxKey key, PhiloxBlock counter) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = kMultiplier0 * counter[0];
    const uint64_t product1 = kMultiplier1 * counter[2];
    counter = {high_word(product1) ^ counter[1] ^ key[0], low_word(product1),
               high_word(product0) ^ counter[3] ^ key[1], low_word(product0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return counter;
}

uint64_t fnv1a64(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char character : text) {
    hash = (hash ^ static_cast<unsigned char>(character)) * 0x100000001b3;
  }
  return hash;
}

PhiloxStream::PhiloxStream(uint64_t seed, std::string_view name)
    : key_{low_word(seed), high_word(seed)}, name_hash_(fnv1a64(name)) {}

PhiloxBlock PhiloxStream::block(uint64_t index) const {
  return philox4x32(key_, {low_word(index), high_word(index), low_word(name_hash_),
                           high_word(name_hash_)});
}

std::array<double, 2> PhiloxStream::uniform_pair(uint64_t index) const {
  const PhiloxBlock words = block(index);
  return {open_unit_interval(words[0], words[1]),
          open_unit_interval(words[2], words[3])};
}

}  // namespace torchtitan::base
