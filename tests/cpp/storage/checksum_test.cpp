#include "storage/checksum.h"

#include <gtest/gtest.h>

#include <random>
#include <string_view>
#include <vector>

namespace torchtitan::storage {
namespace {

std::string hash_text(std::string_view text) {
  return sha256(std::as_bytes(std::span(text)));
}

// FIPS 180-4 examples.
TEST(Sha256, GivesThePublishedDigests) {
  EXPECT_EQ(hash_text(""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash_text("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash_text("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hash_text(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, DoesNotDependOnHowTheBytesArrive) {
  const std::string text(1000, 'x');
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    const size_t size = random() % text.size();
    Sha256 hash;
    for (size_t at = 0; at < size;) {
      const size_t step = std::min<size_t>(random() % 150, size - at);
      hash.update(std::as_bytes(std::span(text).subspan(at, step)));
      at += step;
    }
    EXPECT_EQ(hash.finish(), hash_text(std::string_view(text).substr(0, size)));
  }
}

TEST(Sha256, TwoSideBySideAreThoseOfEach) {
  std::mt19937 random(8);
  std::vector<std::byte> bytes(700);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  const auto all = std::span<const std::byte>(bytes);
  for (int trial = 0; trial < 200; ++trial) {
    const size_t size = random() % 701, cut = random() % (size + 1);
    const auto one = all.first(cut), other = all.subspan(cut, size - cut);
    EXPECT_EQ(Sha256::of_two(one, other), std::pair(sha256(one), sha256(other)));
  }
}

// Written down: checkpoints outlive the program.
TEST(BlockSha256, IsTheHashOfTheDigitsOfItsTwoHalves) {
  EXPECT_EQ(block_sha256(std::as_bytes(std::span(std::string_view("abc")))),
            hash_text(hash_text("a") + hash_text("bc")));
  EXPECT_EQ(block_sha256({}), hash_text(hash_text("") + hash_text("")));
}

TEST(Sha256, InstructionsAndPlainCodeAgree) {
  std::mt19937 random(5);
  std::vector<std::byte> blocks(64 * 9);
  for (std::byte& byte : blocks) byte = static_cast<std::byte>(random());
  std::array<uint32_t, 8> plain;
  for (uint32_t& word : plain) word = static_cast<uint32_t>(random());
  std::array<uint32_t, 8> fast = plain;
  absorb_portable(plain.data(), blocks.data(), 9);
  if (has_sha_instructions()) {
    absorb_with_instructions(fast.data(), blocks.data(), 9);
  } else {
    absorb_portable(fast.data(), blocks.data(), 9);
  }
  EXPECT_EQ(plain, fast);
}

}  // namespace
}  // namespace torchtitan::storage
