// Keys and values of the tokens that a model has read, so that one more token of a
// sequence costs the work of one token. All memory is taken at once; rows are sequences
// under way, each with a length of its own.
//
// A step reads either the prompts of all rows, or one more token of each row:
//   begin(), the layers write, and the prompts are there;
//   extend(), the layers write_last, and each row is one token longer.
//
// Shape letters: B rows, S tokens of the longest prompt and after it padding, G key
// heads of this rank, M tokens that a row has room for, D head dim.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "nn/attention_kernel.h"

namespace torchtitan::generation {

struct CacheShape {
  int64_t layers;
  int64_t rows;
  int64_t kv_heads;
  int64_t max_len;
  int64_t head_dim;
};

class KeyValueCache {
 public:
  // 2 * layers * rows * kv_heads * max_len * head_dim numbers, all zero: what is masked
  // is multiplied by 0 and must be finite. Throws ValueError for a size below 1.
  KeyValueCache(const CacheShape& shape, const at::TensorOptions& options);

  const CacheShape& shape() const { return shape_; }
  int64_t rows() const { return static_cast<int64_t>(lengths_.size()); }
  // Tokens of each row, those of the step under way included.
  const std::vector<int64_t>& lengths() const { return lengths_; }

  // Rows with prompts of these lengths instead of what was there, as [B, padded].
  // Throws ValueError if there is no room for them.
  void begin(std::vector<int64_t> lengths, int64_t padded);
  // One more token in each row, which sees the tokens from position firsts[b] on; the
  // step's tokens are [1, padded], one of each row and padding. Throws ValueError where
  // a row is full.
  void extend(const std::vector<int64_t>& firsts, int64_t padded);
  // From now on row i is what row rows[i] was; `rows` ascends.
  void keep(const std::vector<int64_t>& rows);

  bool reads_prompts() const { return !visible_.defined(); }
  // Positions of the step's tokens [S or padded]; they count within each row.
  const at::Tensor& positions() const { return positions_; }
  // Bool [B, 1, 1, longest row]: what the last tokens see; undefined for prompts.
  const at::Tensor& visible() const { return visible_; }

  // k and v [B, S, G, D] of the prompts, with padding, which later tokens overwrite.
  void write(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  // k and v [B, G, D] of the last token of each row.
  void write_last(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  // [B, longest row, G, D], views.
  at::Tensor keys(int64_t layer) const { return view(keys_, layer); }
  at::Tensor values(int64_t layer) const { return view(values_, layer); }

 private:
  at::Tensor view(const at::Tensor& all, int64_t layer) const;

  CacheShape shape_;
  at::Tensor keys_, values_;  // [layers, rows, G, M, D]
  std::vector<int64_t> lengths_;
  int64_t longest_ = 0;
  at::Tensor positions_;
  at::Tensor visible_;
  at::Tensor row_index_, last_;  // [B] int64: row and position of each last token
};

// Attention of a model that reads through the cache; each block has its layer of it.
// Forward only.
std::shared_ptr<nn::AttentionKernel> cached_attention(
    const std::shared_ptr<KeyValueCache>& cache);

}  // namespace torchtitan::generation
