// SHA-256 by the SHA extensions of x86 (Intel, "New Instructions Supporting the Secure
// Hash Algorithm", 2013): sha256rnds2 does two rounds on the state split as ABEF and
// CDGH, sha256msg1/2 extend the message schedule four words at a time.
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

__attribute__((target("sha,sse4.1,ssse3"))) void absorb_with_instructions(
    uint32_t* state, const std::byte* blocks, size_t num_blocks) {
  const __m128i swap_bytes = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  const auto load = [](const void* from) __attribute__((target("sha,sse4.1,ssse3"))) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
  };
  // [A B C D], [E F G H] in memory order to ABEF and CDGH, high word first.
  const __m128i cdab = _mm_shuffle_epi32(load(state), 0xB1);
  const __m128i efgh = _mm_shuffle_epi32(load(state + 4), 0x1B);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
  __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
  for (; num_blocks > 0; --num_blocks, blocks += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
    for (int i = 0; i < 4; ++i) {
      w[i] = _mm_shuffle_epi8(load(blocks + 16 * i), swap_bytes);
    }
    for (int group = 0; group < 16; ++group) {
      __m128i& oldest = w[group % 4];
      const __m128i sum = _mm_add_epi32(oldest, load(&kSha256Rounds[4 * group]));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
      // Words of group + 4, from groups group .. group + 3.
      const __m128i newest = w[(group + 3) % 4];
      const __m128i seventh = _mm_alignr_epi8(newest, w[(group + 2) % 4], 4);
      const __m128i partial =
          _mm_add_epi32(_mm_sha256msg1_epu32(oldest, w[(group + 1) % 4]), seventh);
      oldest = _mm_sha256msg2_epu32(partial, newest);
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B);
  const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  auto* const out = reinterpret_cast<__m128i*>(state);
  _mm_storeu_si128(out, _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(out + 1, _mm_alignr_epi8(dchg, feba, 8));
}

#else

bool has_sha_instructions() { return false; }

void absorb_with_instructions(uint32_t* state, const std::byte* blocks,
                              size_t num_blocks) {
  absorb_portable(state, blocks, num_blocks);
}

#endif

}  // namespace torchtitan::storage
