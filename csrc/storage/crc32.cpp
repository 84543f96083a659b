#include "storage/crc32.h"

#include <array>

namespace torchtitan::storage {
namespace {

// The polynomial with its bits reversed.
constexpr uint32_t kReversed = 0xEDB88320;

// [n][b]: what byte b does to the state when n bytes follow it.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) {
      state = state >> 1 ^ ((state & 1) != 0 ? kReversed : 0);
    }
    tables[0][byte] = state;
  }
  for (size_t n = 1; n < tables.size(); ++n) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t state = tables[n - 1][byte];
      tables[n][byte] = state >> 8 ^ tables[0][state & 0xFF];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

uint32_t byte_at(const std::byte* data, size_t at) {
  return std::to_integer<uint32_t>(data[at]);
}

}  // namespace

uint32_t crc32_portable(const std::byte* data, size_t size, uint32_t state) {
  for (; size >= 8; size -= 8, data += 8) {
    uint32_t next = 0;
    for (size_t at = 0; at < 8; ++at) {
      const uint32_t mixed = at < 4 ? state >> (8 * at) & 0xFF : 0;
      next ^= kTables[7 - at][byte_at(data, at) ^ mixed];
    }
    state = next;
  }
  for (; size > 0; --size, ++data) {
    state = state >> 8 ^ kTables[0][(byte_at(data, 0) ^ state) & 0xFF];
  }
  return state;
}

uint32_t crc32(std::span<const std::byte> data, uint32_t crc) {
  static const bool fast = has_carryless_multiplication();
  uint32_t state = ~crc;
  if (fast && data.size() >= 64) {
    const size_t whole = data.size() / 16 * 16;
    state = crc32_folded(data.data(), whole, state);
    data = data.subspan(whole);
  }
  return ~crc32_portable(data.data(), data.size(), state);
}

}  // namespace torchtitan::storage
