#include "storage/stream_copy.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/errors.h"
#include "storage/parallel_for.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace torchtitan::storage {
namespace {

constexpr size_t kPieceBytes = size_t{4} << 20;

#if defined(__x86_64__)

void copy_piece(std::byte* to, const std::byte* from, size_t size) {
  constexpr size_t kLine = 64;
  const size_t past = reinterpret_cast<uintptr_t>(to) % kLine;
  const size_t head = std::min(size, (kLine - past) % kLine);
  std::memcpy(to, from, head);
  to += head, from += head, size -= head;
  for (; size >= kLine; to += kLine, from += kLine, size -= kLine) {
    __m128i line[4];
    for (size_t i = 0; i < 4; ++i) {
      line[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i);
    }
    for (size_t i = 0; i < 4; ++i) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i, line[i]);
    }
  }
  std::memcpy(to, from, size);
  _mm_sfence();  // other threads see what was written past the caches
}

#else

void copy_piece(std::byte* to, const std::byte* from, size_t size) {
  std::memcpy(to, from, size);
}

#endif

}  // namespace

void stream_copy(std::span<const Copied> copies, int64_t num_threads) {
  std::vector<Copied> pieces;
  for (const auto& [to, from] : copies) {
    base::check_value(to.size() == from.size(), "stream_copy: ", from.size(),
                      " bytes into ", to.size());
    for (size_t at = 0; at < to.size(); at += kPieceBytes) {
      const size_t size = std::min(kPieceBytes, to.size() - at);
      pieces.push_back({.to = to.subspan(at, size), .from = from.subspan(at, size)});
    }
  }
  parallel_for(pieces.size(), num_threads, [&](size_t i) {
    copy_piece(pieces[i].to.data(), pieces[i].from.data(), pieces[i].to.size());
  });
}

}  // namespace torchtitan::storage
