// Philox4x32-10, a counter-based random generator: a keyed bijection of 128-bit
// counters whose outputs pass as independent random words. There is no state, so any
// element of any tensor can be drawn alone, on any rank and in any order. Source:
// Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace torchtitan::base {

using PhiloxKey = std::array<uint32_t, 2>;
using PhiloxBlock = std::array<uint32_t, 4>;

// The four random words of one counter. Word 0 of key and counter is the lowest.
PhiloxBlock philox4x32(PhiloxKey key, PhiloxBlock counter);

// 64-bit FNV-1a of the bytes of `text`: offset basis 0xcbf29ce484222325, prime
// 0x100000001b3 (RFC 9923). Part of the definition of every initial weight: never
// change.
uint64_t fnv1a64(std::string_view text);

// An endless random sequence that belongs to (seed, name). Block i is
// philox4x32(key = seed, counter = i in the low 64 bits, fnv1a64(name) in the high 64),
// so two streams share a block only if seed and name hash both agree.
class PhiloxStream {
 public:
  PhiloxStream(uint64_t seed, std::string_view name);

  PhiloxBlock block(uint64_t index) const;

  // Two independent numbers of block `index`, uniform in (0, 1) with 52 random bits:
  // (bits + 1/2) / 2^52, hence never 0 or 1 and symmetric around 1/2.
  std::array<double, 2> uniform_pair(uint64_t index) const;

 private:
  PhiloxKey key_;
  uint64_t name_hash_;
};

}  // namespace torchtitan::base
