#include "storage/crc32.h"

#include <gtest/gtest.h>

#include <random>
#include <string_view>
#include <vector>

namespace torchtitan::storage {
namespace {

uint32_t of_text(std::string_view text) {
  return crc32(std::as_bytes(std::span(text)));
}

TEST(Crc32, GivesThePublishedValues) {
  EXPECT_EQ(of_text(""), 0u);
  EXPECT_EQ(of_text("123456789"), 0xCBF43926u);
  EXPECT_EQ(of_text("The quick brown fox jumps over the lazy dog"), 0x414FA339u);
}

std::vector<std::byte> random_bytes(size_t size) {
  std::mt19937 random(11);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

TEST(Crc32, BothWaysGiveTheSame) {
  if (!has_carryless_multiplication()) {
    EXPECT_EQ(crc32(random_bytes(1000)),
              ~crc32_portable(random_bytes(1000).data(), 1000, ~0u));
    return;
  }
  const auto bytes = random_bytes(4096);
  for (size_t size = 64; size <= 2048; size += 16) {
    for (const uint32_t state : {0u, ~0u, 0x12345678u}) {
      const std::byte* from = bytes.data() + size % 61;
      EXPECT_EQ(crc32_folded(from, size, state), crc32_portable(from, size, state))
          << size;
    }
  }
}

TEST(Crc32, DoesNotDependOnHowTheBytesArrive) {
  const auto bytes = random_bytes(3000);
  const uint32_t whole = crc32(bytes);
  EXPECT_EQ(whole, ~crc32_portable(bytes.data(), bytes.size(), ~0u));
  for (size_t cut = 0; cut <= bytes.size(); cut += 37) {
    const auto parts = std::span<const std::byte>(bytes);
    EXPECT_EQ(crc32(parts.subspan(cut), crc32(parts.first(cut))), whole) << cut;
  }
}

}  // namespace
}  // namespace torchtitan::storage
