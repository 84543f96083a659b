// SHA-256 by the SHA extensions of x86 (Intel, "New Instructions Supporting the Secure
// Hash Algorithm", 2013): sha256rnds2 does two rounds on the state split as ABEF and
// CDGH, sha256msg1/2 extend the message schedule four words at a time. Each waits for
// the one before: a second hash fits in between.
#include "storage/checksum.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace torchtitan::storage {

#if defined(__x86_64__)

bool has_sha_instructions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool sha = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 29 & 1) != 0;
  return sha && __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("ssse3");
}

namespace {

template <size_t kLanes>
__attribute__((target("sha,sse4.1,ssse3"))) void absorb_lanes(
    const std::array<uint32_t*, kLanes>& states,
    const std::array<const std::byte*, kLanes>& blocks, size_t num_blocks) {
  const __m128i swap_bytes = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  const auto load = [](const void* from) __attribute__((target("sha,sse4.1,ssse3"))) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
  };
  // [A B C D], [E F G H] in memory order to ABEF and CDGH, high word first.
  __m128i abef[kLanes], cdgh[kLanes];
  for (size_t n = 0; n < kLanes; ++n) {
    const __m128i cdab = _mm_shuffle_epi32(load(states[n]), 0xB1);
    const __m128i efgh = _mm_shuffle_epi32(load(states[n] + 4), 0x1B);
    abef[n] = _mm_alignr_epi8(cdab, efgh, 8);
    cdgh[n] = _mm_blend_epi16(efgh, cdab, 0xF0);
  }
  for (size_t at = 0; at < 64 * num_blocks; at += 64) {
    __m128i w[kLanes][4], abef_before[kLanes], cdgh_before[kLanes];
    for (size_t n = 0; n < kLanes; ++n) {
      abef_before[n] = abef[n], cdgh_before[n] = cdgh[n];
      for (size_t i = 0; i < 4; ++i) {
        w[n][i] = _mm_shuffle_epi8(load(blocks[n] + at + 16 * i), swap_bytes);
      }
    }
#pragma GCC unroll 16
    for (size_t group = 0; group < 16; ++group) {
      const __m128i rounds = load(&kSha256Rounds[4 * group]);
#pragma GCC unroll 2
      for (size_t n = 0; n < kLanes; ++n) {
        __m128i& oldest = w[n][group % 4];
        const __m128i sum = _mm_add_epi32(oldest, rounds);
        cdgh[n] = _mm_sha256rnds2_epu32(cdgh[n], abef[n], sum);
        abef[n] = _mm_sha256rnds2_epu32(abef[n], cdgh[n], _mm_shuffle_epi32(sum, 0x0E));
        if (group >= 12) continue;
        // Words of group + 4, from groups group .. group + 3.
        const __m128i newest = w[n][(group + 3) % 4];
        const __m128i seventh = _mm_alignr_epi8(newest, w[n][(group + 2) % 4], 4);
        const __m128i partial =
            _mm_add_epi32(_mm_sha256msg1_epu32(oldest, w[n][(group + 1) % 4]), seventh);
        oldest = _mm_sha256msg2_epu32(partial, newest);
      }
    }
    for (size_t n = 0; n < kLanes; ++n) {
      abef[n] = _mm_add_epi32(abef[n], abef_before[n]);
      cdgh[n] = _mm_add_epi32(cdgh[n], cdgh_before[n]);
    }
  }
  for (size_t n = 0; n < kLanes; ++n) {
    const __m128i feba = _mm_shuffle_epi32(abef[n], 0x1B);
    const __m128i dchg = _mm_shuffle_epi32(cdgh[n], 0xB1);
    auto* const out = reinterpret_cast<__m128i*>(states[n]);
    _mm_storeu_si128(out, _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128(out + 1, _mm_alignr_epi8(dchg, feba, 8));
  }
}

}  // namespace

void absorb_with_instructions(uint32_t* state, const std::byte* blocks,
                              size_t num_blocks) {
  absorb_lanes<1>({state}, {blocks}, num_blocks);
}

void absorb_two_with_instructions(std::array<uint32_t*, 2> states,
                                  std::array<const std::byte*, 2> blocks,
                                  size_t num_blocks) {
  absorb_lanes<2>(states, blocks, num_blocks);
}

#else

bool has_sha_instructions() { return false; }

void absorb_with_instructions(uint32_t* state, const std::byte* blocks,
                              size_t num_blocks) {
  absorb_portable(state, blocks, num_blocks);
}

void absorb_two_with_instructions(std::array<uint32_t*, 2> states,
                                  std::array<const std::byte*, 2> blocks,
                                  size_t num_blocks) {
  for (size_t n = 0; n < 2; ++n) absorb_portable(states[n], blocks[n], num_blocks);
}

#endif

}  // namespace torchtitan::storage
