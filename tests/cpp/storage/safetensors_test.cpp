#include "storage/safetensors.h"

#include <gtest/gtest.h>

#include <random>

#include "base/errors.h"

namespace torchtitan::storage {
namespace {

std::string error_of(std::string_view text, int64_t data_bytes) {
  try {
    parse_safetensors_header(text, data_bytes, "m.safetensors");
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

// {"a": {...}} with these three values.
std::string one(std::string_view dtype, std::string_view shape,
                std::string_view offsets) {
  return base::message(R"({"a":{"dtype":)", dtype, R"(,"shape":)", shape,
                       R"(,"data_offsets":)", offsets, "}}");
}

TEST(SafetensorsHeader, ReadsTensorsInTheOrderOfTheirData) {
  const SafetensorsHeader header = parse_safetensors_header(
      R"({"__metadata__":{"format":"pt"},
          "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
          "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
          "empty":{"dtype":"I64","shape":[0,5],"data_offsets":[4,4]}}   )",
      16, "m");
  ASSERT_EQ(header.entries.size(), 3u);
  EXPECT_EQ(header.entries[0].spec.name, "a");
  EXPECT_EQ(header.entries[1].spec.name, "empty");
  EXPECT_EQ(header.entries[2].spec.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(header.metadata.at("format"), "pt");
}

TEST(SafetensorsHeader, SaysWhatIsWrongWithATensor) {
  EXPECT_EQ(error_of(one(R"("F32")", "[2]", "[0,4]"), 4),
            "m.safetensors: tensor \"a\" takes 8 bytes, but its offsets are 0 and 4");
  EXPECT_EQ(
      error_of(one(R"("F32")", "[1]", "[0,4]"), 9),
      "m.safetensors: the tensors take 4 bytes, but the file holds 9 bytes of data");
  EXPECT_EQ(error_of(one(R"("F32")", "[1]", "[4,8]"), 8),
            "m.safetensors: tensor \"a\" starts at byte 4 of the data, expected 0");
}

TEST(SafetensorsHeader, RefusesWhatDoesNotFitTogether) {
  const std::string f32 = R"("F32")";
  const std::string good = one(f32, "[1]", "[0,4]");
  ASSERT_EQ(error_of(good, 4), "accepted");
  const auto two = [](std::string_view a, std::string_view b) {
    return base::message(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)", a,
                         R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)", b,
                         "}}");
  };
  ASSERT_EQ(error_of(two("[0,4]", "[4,8]"), 8), "accepted");
  const std::string many_dims = "[1" + [] {
    std::string ones;
    for (int i = 0; i < 64; ++i) ones += ",1";
    return ones;
  }() + "]";
  const std::pair<std::string, int64_t> bad[] = {
      {"", 0},
      {" " + good, 4},
      {"[]", 0},
      {"null", 0},
      {good.substr(0, good.size() - 1), 4},
      {good + "x", 4},
      {good + good, 4},
      {good, 0},
      {good, 3},
      {good, 5},
      {two("[0,4]", "[0,4]"), 4},
      {two("[0,4]", "[0,4]"), 8},
      {two("[0,4]", "[2,6]"), 6},
      {two("[0,4]", "[8,12]"), 12},
      {two("[4,8]", "[8,12]"), 12},
      {one(R"("F33")", "[1]", "[0,4]"), 4},
      {one(R"("f32")", "[1]", "[0,4]"), 4},
      {one(R"("F4")", "[8]", "[0,4]"), 4},
      {one("32", "[1]", "[0,4]"), 4},
      {one("null", "[1]", "[0,4]"), 4},
      {one(f32, "1", "[0,4]"), 4},
      {one(f32, "[1.0]", "[0,4]"), 4},
      {one(f32, "[-1]", "[0,4]"), 4},
      {one(f32, "[-0]", "[0,0]"), 0},
      {one(f32, "[\"1\"]", "[0,4]"), 4},
      {one(f32, "[[1]]", "[0,4]"), 4},
      {one(f32, "[null]", "[0,4]"), 4},
      {one(f32, many_dims, "[0,4]"), 4},
      {one(f32, "[4611686018427387904]", "[0,0]"), 0},
      {one(f32, "[4294967296,4294967296]", "[0,0]"), 0},
      {one(f32, "[4294967296,4294967296,0]", "[0,0]"), 0},
      {one(f32, "[18446744073709551617]", "[0,4]"), 4},
      {one(f32, "[1e0]", "[0,4]"), 4},
      {one(f32, "[1]", "[0]"), 4},
      {one(f32, "[1]", "[0,4,8]"), 4},
      {one(f32, "[1]", "[4,0]"), 4},
      {one(f32, "[1]", "[-4,0]"), 4},
      {one(f32, "[1]", "[0,18446744073709551615]"), 4},
      {one(f32, "[1]", "{\"0\":4}"), 4},
      {one(f32, "[0]", "[0,4]"), 4},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 4},
      {R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4},
      {R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4},
      {R"({"a":["F32",[1],[0,4]]})", 4},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8},
      {R"({"__metadata__":{"x":1}})", 0},
      {R"({"__metadata__":null})", 0},
      {R"({"__metadata__":[]})", 0},
      {R"({"__metadata__":{"x":{}}})", 0},
      {R"({"__metadata__":{"x":"1","x":"2"}})", 0},
      {R"({"__metadata__":{},"__metadata__":{}})", 0},
      {"{\"\xFF\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
      {std::string(1000000, '{'), 0},
      {"{\"a\":" + std::string(1000000, '[') + "}", 0},
  };
  for (const auto& [text, data_bytes] : bad) {
    EXPECT_NE(error_of(text, data_bytes), "accepted") << text.substr(0, 200);
  }
}

TEST(SafetensorsHeader, AnyBytesAreReadOrRefusedWithoutReadingOutside) {
  const std::string good =
      R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}})";
  std::mt19937 random(11);
  int num_accepted = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::vector<char> text(good.begin(), good.end());
    for (uint32_t i = random() % 3 + 1; i > 0; --i) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0: text[at] = static_cast<char>(text[at] ^ 1 << random() % 8); break;
        case 1: text.erase(text.begin() + static_cast<long>(at)); break;
        default: text.insert(text.begin() + static_cast<long>(at), good[at % 80]);
      }
    }
    text.shrink_to_fit();
    num_accepted += error_of({text.data(), text.size()}, 8) == "accepted";
  }
  // Changed names, metadata and offsets written otherwise are still good headers.
  EXPECT_GT(num_accepted, 100);
  EXPECT_LT(num_accepted, 10000);
}

TEST(SafetensorsHeader, WrittenTextReadsBackTheSame) {
  const std::vector<TensorSpec> specs{{"w", Dtype::kF64, {3, 2}},
                                      {"quote\"\n", Dtype::kF8E4M3, {0}},
                                      {"s", Dtype::kBool, {}}};
  const std::string text = safetensors_header(specs, {{"format", "pt"}});
  EXPECT_EQ(text.size() % 8, 0u);
  const SafetensorsHeader header = parse_safetensors_header(text, 49, "m");
  ASSERT_EQ(header.entries.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(header.entries[i].spec.name, specs[i].name);
    EXPECT_EQ(header.entries[i].spec.dtype, specs[i].dtype);
    EXPECT_EQ(header.entries[i].spec.shape, specs[i].shape);
  }
  EXPECT_THROW(
      safetensors_header({{"a", Dtype::kF32, {1}}, {"a", Dtype::kF32, {1}}}, {}),
      std::invalid_argument);
  EXPECT_THROW(safetensors_header({{"__metadata__", Dtype::kF32, {1}}}, {}),
               std::invalid_argument);
}

TEST(SafetensorsHeader, KnowsNameAndSizeOfEveryDtype) {
  for (int i = 0; i <= static_cast<int>(Dtype::kU64); ++i) {
    const auto dtype = static_cast<Dtype>(i);
    EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  }
  EXPECT_EQ(dtype_size_bytes(Dtype::kBF16), 2);
  EXPECT_EQ(dtype_size_bytes(Dtype::kU64), 8);
  EXPECT_EQ(dtype_from_name("U128"), std::nullopt);
}

}  // namespace
}  // namespace torchtitan::storage
