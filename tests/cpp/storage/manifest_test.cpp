#include "storage/manifest.h"

#include <gtest/gtest.h>

#include <random>

#include "base/errors.h"
#include "storage/checksum.h"

namespace torchtitan::storage {
namespace {

using base::Json;

const std::string kBlocks(128, 'c');  // two of them

Manifest example() {
  return {
      .step = 10,
      .id = "0123456789abcdef",
      .parent = "",
      .sequence = 3,
      .content = Content::kTraining,
      .world_size = 2,
      .config_hash = "c",
      .torch_version = "2.13.0",
      .torchtitan_cpp_version = "0.1.0",
      .files = {{.name = "rank-00000.safetensors",
                 .size_bytes = 100,
                 .sha256 = std::string(64, 'a'),
                 .blocks = ""},
                {.name = "rank-00001.safetensors",
                 .size_bytes = static_cast<int64_t>(kHashedBlockBytes) + 1,
                 .sha256 = sha256(std::as_bytes(std::span(kBlocks))),
                 .blocks = kBlocks}},
      .tensors = {{.name = "w",
                   .kind = "model",
                   .dtype = Dtype::kF32,
                   .shape = {3, 2},
                   .boxes = {{0, "w", {{0, 0}, {2, 2}}}, {1, "w", {{2, 0}, {1, 2}}}}}},
      .scalars = Json::Object{{"train_state", Json::Object{{"step", 10}}}},
      .gathered = Json::Object{{"rng", Json::Array{1, 2}}}};
}

std::string error_of(std::string_view text) {
  try {
    parse_manifest(text, "m.json");
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

// The example's text with one part replaced; the part must be there.
std::string with(std::string_view from, std::string_view to) {
  std::string text = dump_manifest(example());
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Manifest, RefusesHashesOfBlocksThatAreNotThoseOfTheFile) {
  const std::string bad = "m.json: file \"rank-00001.safetensors\": bad block_sha256";
  EXPECT_EQ(error_of(with("4194305", "4194304")), bad);
  EXPECT_EQ(error_of(with("4194305", "8388609")), bad);
  EXPECT_EQ(error_of(with("4194305", "9223372036854775807")), bad);
  EXPECT_EQ(error_of(with(kBlocks, std::string(127, 'c') + 'd')), bad);
  EXPECT_EQ(error_of(with(kBlocks, std::string(128, 'C'))), bad);
}

TEST(Manifest, TextReadsBackToTheSameText) {
  const std::string text = dump_manifest(example());
  const Manifest manifest = parse_manifest(text, "m.json");
  EXPECT_EQ(dump_manifest(manifest), text);
  EXPECT_EQ(manifest.tensors[0].boxes[1].box, (Box{{2, 0}, {1, 2}}));
  EXPECT_EQ(manifest.content, Content::kTraining);
}

TEST(Manifest, RefusesUnsoundTextsAndSaysWhy) {
  EXPECT_EQ(error_of(with(R"("size":[1,2])", R"("size":[2,2])")),
            "m.json: tensor \"w\": box [2, 2 + 2) of dim 0 lies outside its size 3");
  EXPECT_EQ(error_of(with(R"("offset":[2,0])", R"("offset":[1,0])")),
            "m.json: tensor \"w\": boxes [0:2, 0:2] and [1:2, 0:2] overlap");
  EXPECT_EQ(error_of(with(R"("size":[2,2])", R"("size":[1,2])")),
            "m.json: tensor \"w\": the boxes hold 4 of its 6 elements");
  EXPECT_EQ(error_of(with(R"("format_version":1)", R"("format_version":2)")),
            "m.json: expected format_version 1, found 2");
  EXPECT_EQ(error_of(with("rank-00001.safetensors", "../rank")),
            "m.json: files: expected a plain file name, found \"../rank\"");
  const std::pair<std::string, std::string> changes[] = {
      {R"("step":10,)", R"("step":-1,)"},
      {R"("step":10,)", R"("step":"10",)"},
      {R"("step":10,)", R"("step":10,"steps":1,)"},
      {R"("sequence":3,)", ""},
      {R"("id":"0123456789abcdef")", R"("id":"0123456789abcdeg")"},
      {R"("parent":"")", R"("parent":"x")"},
      {R"("content":"training")", R"("content":"everything")"},
      {"torchtitan_cpp checkpoint", "another"},
      {R"("world_size":2)", R"("world_size":3)"},
      {R"("size_bytes":100)", R"("size_bytes":-100)"},
      {std::string(64, 'a'), std::string(63, 'a')},
      {"rank-00001.safetensors", "rank-00000.safetensors"},
      {"rank-00001.safetensors", "manifest.json"},
      {"rank-00001.safetensors", "/etc/passwd"},
      {R"("dtype":"F32")", R"("dtype":"float32")"},
      {R"("kind":"model")", R"("kind":"weights")"},
      {R"("file":1)", R"("file":2)"},
      {R"("file":1)", R"("file":-1)"},
      {R"("shape":[3,2])", R"("shape":[3,2,1])"},
      {R"("shape":[3,2])", R"("shape":[4611686018427387904,4])"},
      {R"("size":[1,2])", R"("size":[0,2])"},
      {R"("scalars":{)", R"("scalars":[],"x":{)"},
  };
  for (const auto& [from, to] : changes) {
    EXPECT_NE(error_of(with(from, to)), "accepted") << from << " -> " << to;
  }
}

TEST(ExactCover, TakesAScalarAndAnEmptyTensor) {
  EXPECT_NO_THROW(check_exact_cover("s", {}, {{0, "s", {{}, {}}}}));
  EXPECT_NO_THROW(check_exact_cover("e", {0, 4}, {}));
  EXPECT_THROW(check_exact_cover("s", {}, {}), std::invalid_argument);
  EXPECT_THROW(check_exact_cover("s", {}, {{0, "s", {{}, {}}}, {1, "s", {{}, {}}}}),
               std::invalid_argument);
}

// Against counting every element.
TEST(ExactCover, AgreesWithCountingOnRandomBoxes) {
  std::mt19937 random(2);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int num_covers = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    const std::vector<int64_t> shape{pick(1, 4), pick(1, 3)};
    const int64_t cut = pick(1, shape[0]), second_cut = pick(1, shape[1]);
    std::vector<StoredBox> boxes;
    const auto add = [&](int64_t row, int64_t column, int64_t rows, int64_t columns) {
      if (rows > 0 && columns > 0) {
        boxes.push_back({0, "w", {{row, column}, {rows, columns}}});
      }
    };
    add(0, 0, cut, second_cut);
    add(0, second_cut, cut, shape[1] - second_cut);
    add(cut, 0, shape[0] - cut, shape[1]);
    if (trial % 2 == 0) {  // move one edge
      Box& box = boxes[static_cast<size_t>(pick(0, std::ssize(boxes) - 1))].box;
      auto& side = pick(0, 1) == 0 ? box.offset : box.size;
      side[static_cast<size_t>(pick(0, 1))] += pick(-1, 1);
    }
    std::vector<int> count(static_cast<size_t>(shape[0] * shape[1]), 0);
    bool expected = true;
    for (const auto& [file, key, box] : boxes) {
      for (int64_t i = box.offset[0]; i < box.offset[0] + box.size[0]; ++i) {
        for (int64_t j = box.offset[1]; j < box.offset[1] + box.size[1]; ++j) {
          const bool inside = i >= 0 && i < shape[0] && j >= 0 && j < shape[1];
          expected = expected && inside;
          if (inside) ++count[static_cast<size_t>(i * shape[1] + j)];
        }
      }
      expected = expected && box.size[0] * box.size[1] > 0;
    }
    for (const int times : count) expected = expected && times == 1;
    bool accepted = true;
    try {
      check_exact_cover("w", shape, boxes);
    } catch (const std::invalid_argument&) {
      accepted = false;
    }
    ASSERT_EQ(accepted, expected) << "trial " << trial;
    num_covers += expected;
  }
  EXPECT_GT(num_covers, 10000);
  EXPECT_LT(num_covers, 19000);
}

}  // namespace
}  // namespace torchtitan::storage
