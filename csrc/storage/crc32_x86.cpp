// CRC-32 by carry-less multiplication (Gopal et al., "Fast CRC Computation for Generic
// Polynomials Using PCLMULQDQ Instruction", Intel 2009): a block times x^n modulo the
// polynomial stands for the block n bits further on, so blocks fold into later ones; 64
// bits are left for a Barrett reduction.
#include "storage/crc32.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace torchtitan::storage {

#if defined(__x86_64__)

namespace {

__attribute__((target("pclmul,sse4.1"))) inline __m128i load(const std::byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// `block`, moved on by what `powers` stand for, plus `next`.
__attribute__((target("pclmul,sse4.1"))) inline __m128i fold(__m128i block,
                                                             __m128i powers,
                                                             __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(block, powers, 0x00);
  const __m128i high = _mm_clmulepi64_si128(block, powers, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

}  // namespace

bool has_carryless_multiplication() {
  return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

__attribute__((target("pclmul,sse4.1"))) uint32_t crc32_folded(const std::byte* data,
                                                               size_t size,
                                                               uint32_t state) {
  // x^(n + 32) and x^(n - 32) modulo the polynomial, bits reversed, of folds by
  // n = 512 and n = 128 bits.
  const __m128i by_512 = _mm_set_epi64x(0x1C6E41596, 0x154442BD4);
  const __m128i by_128 = _mm_set_epi64x(0x0CCAA009E, 0x1751997D0);
  __m128i block[4];
  for (int i = 0; i < 4; ++i) block[i] = load(data + 16 * i);
  block[0] = _mm_xor_si128(block[0], _mm_cvtsi32_si128(static_cast<int>(state)));
  data += 64, size -= 64;
  for (; size >= 64; data += 64, size -= 64) {
    for (int i = 0; i < 4; ++i) block[i] = fold(block[i], by_512, load(data + 16 * i));
  }
  __m128i sum = block[0];
  for (int i = 1; i < 4; ++i) sum = fold(sum, by_128, block[i]);
  for (; size >= 16; data += 16, size -= 16) sum = fold(sum, by_128, load(data));
  // 128 to 64 bits, which stand for 32 zero bits more: x^96, then x^64.
  const __m128i low_32 = _mm_setr_epi32(-1, 0, -1, 0);
  const __m128i by_64 = _mm_set_epi64x(0, 0x163CD6124);
  sum = _mm_xor_si128(_mm_srli_si128(sum, 8), _mm_clmulepi64_si128(sum, by_128, 0x10));
  sum = _mm_xor_si128(_mm_srli_si128(sum, 4),
                      _mm_clmulepi64_si128(_mm_and_si128(sum, low_32), by_64, 0x00));
  // Barrett: the quotient by the polynomial's inverse, times the polynomial.
  const __m128i polynomial = _mm_set_epi64x(0x1F7011641, 0x1DB710641);
  __m128i quotient = _mm_clmulepi64_si128(_mm_and_si128(sum, low_32), polynomial, 0x10);
  quotient = _mm_clmulepi64_si128(_mm_and_si128(quotient, low_32), polynomial, 0x00);
  return static_cast<uint32_t>(_mm_extract_epi32(_mm_xor_si128(sum, quotient), 1));
}

#else

bool has_carryless_multiplication() { return false; }

uint32_t crc32_folded(const std::byte* data, size_t size, uint32_t state) {
  return crc32_portable(data, size, state);
}

#endif

}  // namespace torchtitan::storage
