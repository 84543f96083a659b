// A model that reads prompts and then token after token through a cache of keys and
// values, and says what may come next. Nothing here is seen by autograd.
//
// Over a tensor axis every rank calls the same functions with the same arguments and
// gets the same logits; each holds its heads of the cache.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "generation/key_value_cache.h"
#include "nn/model.h"
#include "nn/tensor_axis.h"

namespace torchtitan::generation {

struct DecoderOptions {
  // From "input", and "document_starts" where it reads them, to "h", and in its last
  // segment, token by token, to "logits"; its blocks attend through `cache`.
  nn::Model model;
  std::vector<nn::TensorList> parameters;  // this rank's, by group and slot
  std::shared_ptr<KeyValueCache> cache;
  nn::TensorAxis axis;  // that the model is built over
  // The token that ends a document, for a model that reads document starts.
  std::optional<int64_t> document_end;
};

class Decoder {
 public:
  explicit Decoder(DecoderOptions options);

  // Forgets what it has read and reads prompts, which may differ in length: all tokens
  // at once. Logits [prompts, vocabulary] of the token after each. Throws ValueError
  // for prompts that are empty or longer than the cache.
  at::Tensor read(const std::vector<std::vector<int64_t>>& prompts);

  // Reads one more token of each row. Logits [rows, vocabulary] of the token after it.
  // Throws ValueError for another number of tokens or a row that is full.
  at::Tensor read_next(const std::vector<int64_t>& tokens);

  // Row i goes on where row rows[i] is; `rows` ascends, the others are forgotten.
  void keep(const std::vector<int64_t>& rows);

 private:
  // Tokens [B, S] through all segments; `last` are the places in the flat tokens behind
  // which logits are wanted, null: all tokens.
  at::Tensor run(const at::Tensor& tokens, const std::vector<int64_t>& starts,
                 const std::vector<int64_t>* last);
  at::Tensor select(const at::Tensor& hidden, const std::vector<int64_t>& last) const;
  int64_t padded(int64_t tokens) const;
  // Notes that row `row` has `token` at `position`.
  void note(size_t row, int64_t token, int64_t position);

  DecoderOptions options_;
  at::Device device_;
  std::vector<int64_t> document_starts_;  // by row, that of the next token
};

}  // namespace torchtitan::generation
