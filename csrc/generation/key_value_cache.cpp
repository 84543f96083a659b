#include "generation/key_value_cache.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace torchtitan::generation {
namespace {

int64_t largest(const std::vector<int64_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

at::Tensor to_tensor(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::TensorOptions(at::kLong)).to(device);
}

}  // namespace

KeyValueCache::KeyValueCache(const CacheShape& shape, const at::TensorOptions& options)
    : shape_(shape) {
  TORCH_CHECK_VALUE(shape.layers > 0 && shape.rows > 0 && shape.kv_heads > 0 &&
                        shape.max_len > 0 && shape.head_dim > 0,
                    "KeyValueCache: expected positive sizes, got layers ", shape.layers,
                    ", rows ", shape.rows, ", kv_heads ", shape.kv_heads, ", max_len ",
                    shape.max_len, ", head_dim ", shape.head_dim);
  const std::vector<int64_t> sizes = {shape.layers, shape.rows, shape.kv_heads,
                                      shape.max_len, shape.head_dim};
  keys_ = at::zeros(sizes, options);
  values_ = at::zeros(sizes, options);
}

void KeyValueCache::begin(std::vector<int64_t> lengths, int64_t padded) {
  const int64_t longest = largest(lengths);
  TORCH_CHECK_VALUE(
      !lengths.empty() && static_cast<int64_t>(lengths.size()) <= shape_.rows,
      "KeyValueCache: expected 1 to ", shape_.rows, " prompts, got ", lengths.size());
  TORCH_CHECK_VALUE(*std::min_element(lengths.begin(), lengths.end()) > 0,
                    "KeyValueCache: a prompt has no token");
  TORCH_CHECK_VALUE(longest <= shape_.max_len && longest <= padded,
                    "KeyValueCache: a prompt of ", longest, " tokens in a row of ",
                    shape_.max_len, ", padded to ", padded);
  lengths_ = std::move(lengths);
  longest_ = longest;
  positions_ = at::arange(padded, keys_.options().dtype(at::kLong));
  visible_.reset();
}

void KeyValueCache::extend(const std::vector<int64_t>& firsts, int64_t padded) {
  TORCH_CHECK_VALUE(rows() > 0 && firsts.size() == lengths_.size() && padded >= rows(),
                    "KeyValueCache: expected one first position for each of ", rows(),
                    " rows, got ", firsts.size(), ", padded to ", padded);
  TORCH_CHECK_VALUE(largest(lengths_) < shape_.max_len,
                    "KeyValueCache: a row has all the ", shape_.max_len,
                    " tokens that it has room for");
  auto positions = lengths_;
  positions.resize(static_cast<size_t>(padded), 0);
  const auto device = keys_.device();
  positions_ = to_tensor(positions, device);
  last_ = positions_.narrow(0, 0, rows());
  row_index_ = at::arange(rows(), positions_.options());
  for (auto& length : lengths_) ++length;
  longest_ = largest(lengths_);
  const auto key = at::arange(longest_, positions_.options());
  visible_ = key.le(last_.unsqueeze(1))
                 .logical_and_(key.ge(to_tensor(firsts, device).unsqueeze(1)))
                 .view({rows(), 1, 1, longest_});
}

void KeyValueCache::keep(const std::vector<int64_t>& rows) {
  std::vector<int64_t> kept;
  int64_t before = -1;
  for (const int64_t row : rows) {
    TORCH_CHECK_VALUE(row > before && row < this->rows(), "KeyValueCache: row ", row,
                      " of ", this->rows(), " behind row ", before);
    const auto to = static_cast<int64_t>(kept.size());
    const int64_t length = lengths_[static_cast<size_t>(row)];
    for (const auto* all : {&keys_, &values_}) {
      if (to == row) continue;
      // A row moves down only, to one that nobody asks for any more.
      all->select(1, to)
          .narrow(2, 0, length)
          .copy_(all->select(1, row).narrow(2, 0, length));
    }
    kept.push_back(length);
    before = row;
  }
  lengths_ = std::move(kept);
  longest_ = largest(lengths_);
}

void KeyValueCache::write(int64_t layer, const at::Tensor& k, const at::Tensor& v) {
  const int64_t count = std::min(k.size(1), shape_.max_len);
  const auto put = [&](const at::Tensor& all, const at::Tensor& tokens) {
    all.select(0, layer)
        .narrow(0, 0, rows())
        .narrow(2, 0, count)
        .copy_(tokens.narrow(1, 0, count).transpose(1, 2));
  };
  put(keys_, k);
  put(values_, v);
}

void KeyValueCache::write_last(int64_t layer, const at::Tensor& k,
                               const at::Tensor& v) {
  const auto put = [&](const at::Tensor& all, const at::Tensor& tokens) {
    all.select(0, layer).transpose(1, 2).index_put_({row_index_, last_}, tokens);
  };
  put(keys_, k);
  put(values_, v);
}

at::Tensor KeyValueCache::view(const at::Tensor& all, int64_t layer) const {
  return all.select(0, layer)
      .narrow(0, 0, rows())
      .narrow(2, 0, longest_)
      .transpose(1, 2);
}

}  // namespace torchtitan::generation
