// Logits of a model that reads token after token are those of the model that reads the
// whole sequence, whatever else is in the batch and over any tensor axis.
#include "generation/decoder.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "collectives/local_world.h"
#include "generation/error_message.h"
#include "models/llama/model.h"
#include "nn/whole_group.h"

namespace torchtitan::generation {
namespace {

using models::llama::Args;
using TokenRows = std::vector<std::vector<int64_t>>;

constexpr int64_t kDocumentEnd = 5;
constexpr int64_t kMaxLen = 16;

Args args() {
  return {.dim = 32,
          .n_layers = 3,
          .n_heads = 8,
          .n_kv_heads = 4,
          .vocab_size = 37,
          .hidden_dim = 24,
          .norm_eps = 1e-5,
          .rope_theta = 1e4,
          .rope_scaling = std::nullopt,
          .max_seq_len = kMaxLen,
          .depth_init = true,
          .tied_embeddings = false};
}

struct Case {
  std::string name;
  Args args;
  at::ScalarType dtype = at::kDouble;
  int64_t ranks = 1;
};

struct Built {
  nn::Model model;
  std::vector<nn::TensorList> parameters;
};

Built build(const Case& c, const collectives::Group& axis,
            const std::shared_ptr<nn::AttentionKernel>& attention) {
  Built built;
  built.model =
      models::llama::build(c.args, {.head = models::llama::Head::kLogits,
                                    .device = at::kCPU,
                                    .dtype = c.dtype,
                                    .axis = nn::TensorAxis(axis, nn::Overlap::kNone),
                                    .loss_parallel = true,
                                    .attention = attention});
  for (const auto& spec : built.model.groups) {
    nn::WholeGroup group(spec,
                         {.master_dtype = c.dtype,
                          .compute_dtype = c.dtype,
                          .reduce_dtype = c.dtype,
                          .device = at::Device(at::kCPU)},
                         collectives::Group("dp_replicate"));
    group.initialize(3);
    built.parameters.emplace_back();
    for (const auto& shard : group.shards()) {
      // Larger than initial ones: attention that is nearly uniform hides mistakes.
      built.parameters.back().push_back(shard.value.mul(3));
    }
  }
  return built;
}

// Of the token after `tokens`, by reading all of them.
at::Tensor whole_logits(const Case& c, const std::vector<int64_t>& tokens) {
  const auto built = build(c, collectives::Group("tp"), nn::local_attention());
  const auto ids = at::tensor(tokens, at::kLong).unsqueeze(0);
  std::vector<int64_t> starts;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const bool begins = i == 0 || tokens[i - 1] == kDocumentEnd;
    starts.push_back(begins ? static_cast<int64_t>(i) : starts.back());
  }
  const auto values =
      nn::forward(built.model, built.parameters,
                  {{"input", ids},
                   {"document_starts", at::tensor(starts, at::kLong).unsqueeze(0)}});
  return values.at("logits").select(0, 0).select(0, ids.size(1) - 1);
}

Decoder decoder(const Case& c, const collectives::Group& axis, int64_t rows) {
  const auto cache = std::make_shared<KeyValueCache>(
      CacheShape{.layers = c.args.n_layers,
                 .rows = rows,
                 .kv_heads = c.args.n_kv_heads / axis.size(),
                 .max_len = kMaxLen,
                 .head_dim = c.args.head_dim()},
      at::TensorOptions(c.dtype));
  auto built = build(c, axis, cached_attention(cache));
  return Decoder({.model = built.model,
                  .parameters = built.parameters,
                  .cache = cache,
                  .axis = nn::TensorAxis(axis, nn::Overlap::kNone),
                  .document_end = c.args.document_masks ? std::optional(kDocumentEnd)
                                                        : std::nullopt});
}

void expect_logits(const Case& c, const at::Tensor& found, const TokenRows& rows) {
  ASSERT_EQ(found.sizes(),
            (std::vector<int64_t>{static_cast<int64_t>(rows.size()), 37}));
  const double tolerance = c.dtype == at::kDouble ? 1e-12 : 1e-5;
  for (size_t row = 0; row < rows.size(); ++row) {
    const auto expected = whole_logits(c, rows[row]);
    const auto error = found[static_cast<int64_t>(row)].sub(expected).abs().max();
    EXPECT_LE(error.item<double>(), tolerance * expected.abs().max().item<double>())
        << "row " << row << " of length " << rows[row].size();
  }
}

const TokenRows kPrompts = {{1, 5, 3}, {4, 7, 11, 2, 5, 8, 30}, {9}};

class DecoderTest : public ::testing::TestWithParam<Case> {};

TEST_P(DecoderTest, SaysWhatTheWholeModelSays) {
  const auto& c = GetParam();
  const collectives::LocalWorld world(c.ranks, std::chrono::seconds(60));
  world.run([&](int64_t rank) {
    auto decode = decoder(c, world.group(rank, "tp"), 3);
    auto rows = kPrompts;
    expect_logits(c, decode.read(rows), rows);
    // The second row ends a document on its way, the first one does later.
    for (const auto& next : TokenRows{{6, 5, 30}, {5, 2, 1}, {12, 13, 14}}) {
      for (size_t row = 0; row < rows.size(); ++row) rows[row].push_back(next[row]);
      expect_logits(c, decode.read_next(next), rows);
    }
    decode.keep({1, 2});
    rows.erase(rows.begin());
    for (const auto& next : TokenRows{{20, 21}, {5, 22}, {23, 24}}) {
      for (size_t row = 0; row < rows.size(); ++row) rows[row].push_back(next[row]);
      expect_logits(c, decode.read_next(next), rows);
    }
  });
}

Case with(std::string name, void (*change)(Args&), at::ScalarType dtype,
          int64_t ranks) {
  Case c{.name = std::move(name), .args = args(), .dtype = dtype, .ranks = ranks};
  change(c.args);
  return c;
}

INSTANTIATE_TEST_SUITE_P(
    Llama, DecoderTest,
    ::testing::Values(
        with(
            "Grouped", [](Args&) {}, at::kDouble, 1),
        with(
            "Float", [](Args&) {}, at::kFloat, 1),
        with(
            "AllHeads", [](Args& a) { a.n_kv_heads = 8; }, at::kDouble, 1),
        with(
            "Tied", [](Args& a) { a.tied_embeddings = true; }, at::kDouble, 1),
        with(
            "Scaled",
            [](Args& a) {
              a.rope_scaling = ops::RopeScaling{.factor = 8,
                                                .low_freq_factor = 1,
                                                .high_freq_factor = 4,
                                                .original_context = 8};
            },
            at::kDouble, 1),
        with(
            "Documents", [](Args& a) { a.document_masks = true; }, at::kDouble, 1),
        with(
            "Ranks2", [](Args&) {}, at::kDouble, 2),
        with(
            "Ranks4Documents", [](Args& a) { a.document_masks = true; }, at::kDouble,
            4)),
    [](const auto& info) { return info.param.name; });

TEST(Decoder, ReadsOtherPromptsAfterwards) {
  const Case c{.name = "", .args = args()};
  auto decode = decoder(c, collectives::Group("tp"), 3);
  decode.read(kPrompts);
  decode.read_next({1, 2, 3});
  const TokenRows others = {{8, 8}, {30}};
  expect_logits(c, decode.read(others), others);
}

TEST(Decoder, RefusesWhatHasNoRoom) {
  const Case c{.name = "", .args = args()};
  auto decode = decoder(c, collectives::Group("tp"), 2);
  EXPECT_EQ(message([&] { decode.read({{1}, {2}, {3}}); }),
            "KeyValueCache: expected 1 to 2 prompts, got 3");
  EXPECT_EQ(message([&] { decode.read({{1}, {}}); }),
            "KeyValueCache: a prompt has no token");
  EXPECT_EQ(message([&] { decode.read({std::vector<int64_t>(17, 1)}); }),
            "KeyValueCache: a prompt of 17 tokens in a row of 16, padded to 17");
  decode.read({std::vector<int64_t>(15, 1), {2}});
  EXPECT_EQ(message([&] { decode.read_next({1}); }),
            "Decoder: expected one token for each of 2 rows, got 1");
  decode.read_next({1, 1});
  EXPECT_EQ(message([&] { decode.read_next({1, 1}); }),
            "KeyValueCache: a row has all the 16 tokens that it has room for");
  EXPECT_EQ(message([&] { decode.keep({1, 0}); }),
            "KeyValueCache: row 0 of 2 behind row 1");
}

}  // namespace
}  // namespace torchtitan::generation
