// CRC-32 as ZIP archives have it (ISO 3309: polynomial 0x04C11DB7, reflected). Uses the
// carry-less multiplication of x86 CPUs when there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace torchtitan::storage {

// Of `before` and `data` behind each other, where `crc` is that of `before`; 0 is that
// of nothing.
uint32_t crc32(std::span<const std::byte> data, uint32_t crc = 0);

// The two ways, on the complement of the CRC. The second one takes a multiple of 16
// bytes, at least 64, and may be called where has_carryless_multiplication().
uint32_t crc32_portable(const std::byte* data, size_t size, uint32_t state);
uint32_t crc32_folded(const std::byte* data, size_t size, uint32_t state);
bool has_carryless_multiplication();

}  // namespace torchtitan::storage
