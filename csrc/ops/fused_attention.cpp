#include "ops/fused_attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/checked_math.h"
#include "ops/fused_dtype.h"

namespace torchtitan::ops::fused {
namespace {

using simd::Wide;

simd::AttentionShape shape_of(const at::Tensor& q, const at::Tensor& k) {
  return {.queries = q.size(1),
          .keys = k.size(1),
          .head_dim = q.size(3),
          .query_stride = q.size(2) * q.size(3),
          .key_stride = k.size(2) * k.size(3),
          .scale = 1 / std::sqrt(static_cast<double>(q.size(3)))};
}

// Working memory: a row for each of torch's threads, found by its number. Made on meta
// too, so that what is measured there is what a run takes.
enum class Pass { kForward, kBackward };
at::Tensor scratch_of(Pass pass, const simd::AttentionShape& shape,
                      const at::Tensor& like) {
  int64_t row = 0;
  with_type(like, [&]<class T>(Of<T>) {
    const auto& kernels = simd::best<T>();
    row = pass == Pass::kForward ? kernels.attention_scratch(shape)
                                 : kernels.attention_backward_scratch(shape);
  });
  return at::empty({at::get_num_threads(), row}, wide_options(like));
}

// What each query sees, as the kernels read it.
class Bounds {
 public:
  Bounds(const QueryPlaces& queries, const at::Tensor& key_positions)
      : padded_(base::ceil_div(queries.positions.size(0), simd::kQueries) *
                simd::kQueries),
        rows_(queries.document_starts.defined() ? queries.document_starts.size(0) : 1) {
    const int64_t padded_keys =
        base::ceil_div(key_positions.size(0), simd::kKeys) * simd::kKeys;
    all_ = at::empty({(1 + rows_) * padded_ + padded_keys},
                     queries.positions.options().dtype(at::kInt));
    if (all_.is_meta()) return;
    auto* const last = all_.mutable_data_ptr<int32_t>();
    auto* const first = last + padded_;
    auto* const key = first + rows_ * padded_;
    const auto* position = queries.positions.const_data_ptr<int64_t>();
    const auto* at = key_positions.const_data_ptr<int64_t>();
    const int64_t count = queries.positions.size(0);
    for (int64_t i = 0; i < padded_; ++i) {
      last[i] = i < count ? static_cast<int32_t>(position[i]) : -1;
    }
    for (int64_t i = 0; i < padded_keys; ++i) {
      key[i] = i < key_positions.size(0) ? static_cast<int32_t>(at[i])
                                         : std::numeric_limits<int32_t>::max();
    }
    std::fill(first, key, 0);
    if (!queries.document_starts.defined()) return;
    const auto starts = queries.document_starts.contiguous();
    for (int64_t row = 0; row < rows_; ++row) {
      const auto* start = starts.const_data_ptr<int64_t>() + row * starts.size(1);
      for (int64_t i = 0; i < count; ++i) {
        first[row * padded_ + i] = static_cast<int32_t>(start[position[i]]);
      }
    }
  }

  simd::AttentionBounds of_row(int64_t row) const {
    const auto* const last = all_.const_data_ptr<int32_t>();
    const auto* const first = last + padded_;
    return {.first = first + (rows_ == 1 ? 0 : row) * padded_,
            .last = last,
            .key = first + rows_ * padded_};
  }

  int64_t rows() const { return rows_; }

 private:
  int64_t padded_;  // queries
  int64_t rows_;    // of the batch, with bounds of their own
  at::Tensor all_;  // last [padded], first [rows, padded], key [padded keys]
};

template <class T>
simd::AttentionGradients<T> pointers(const AttentionGradient& gradient) {
  return {data_or_null<T>(gradient.q), data_or_null<T>(gradient.k),
          data_or_null<T>(gradient.v)};
}

template <class T>
simd::AttentionGradients<T> shifted(const simd::AttentionGradients<T>& all,
                                    int64_t query, int64_t key) {
  if (all.q == nullptr) return all;
  return {all.q + query, all.k + key, all.v + key};
}

void backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const QueryPlaces& queries, const at::Tensor& key_positions,
              const at::Tensor& lse, const at::Tensor& delta, const at::Tensor& d_o,
              const AttentionGradient& gradient, const AttentionGradient& sums) {
  const auto shape = shape_of(q, k);
  const int64_t groups = k.size(2), dim = shape.head_dim;
  const int64_t share = q.size(2) / groups;
  const auto scratch = scratch_of(Pass::kBackward, shape, q);
  const Bounds bounds(queries, key_positions);
  for_dtype(q, [&]<class T>(Of<T>) {
    auto *const memory = data<Wide<T>>(scratch), *const log = data<Wide<T>>(lse),
                *const drop = data<Wide<T>>(delta);
    auto *query = data<T>(q), *key = data<T>(k), *value = data<T>(v),
         *d_out = data<T>(d_o);
    const auto written = pointers<T>(gradient);
    const auto added = pointers<Wide<T>>(sums);
    at::parallel_for(0, q.size(0) * groups, 1, [&](int64_t begin, int64_t end) {
      auto* const own = memory + at::get_thread_num() * scratch.size(1);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / groups, group = unit % groups;
        const int64_t at =
            row * shape.queries * shape.query_stride + group * share * dim;
        const int64_t from = row * shape.keys * shape.key_stride + group * dim;
        const int64_t head = unit * share * shape.queries;
        simd::best<T>().attention_backward(
            shape, bounds.of_row(row), share, query + at, key + from, value + from,
            log + head, drop + head, d_out + at, shifted(written, at, from),
            shifted(added, at, from), own);
      }
    });
  });
}

}  // namespace

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const QueryPlaces& queries, const at::Tensor& key_positions, Part part,
               const at::Tensor& sum, const at::Tensor& o, const at::Tensor& lse) {
  const auto shape = shape_of(q, k);
  const int64_t heads = q.size(2), dim = shape.head_dim;
  const int64_t share = heads / k.size(2);
  const bool continues = part == Part::kMiddle || part == Part::kLast;
  const bool ends = part == Part::kOnly || part == Part::kLast;
  const auto scratch = scratch_of(Pass::kForward, shape, q);
  const Bounds bounds(queries, key_positions);
  for_dtype(q, [&]<class T>(Of<T>) {
    auto *const memory = data<Wide<T>>(scratch), *const log = data<Wide<T>>(lse);
    auto* const so_far = part == Part::kOnly ? nullptr : data<Wide<T>>(sum);
    auto* const out = ends ? data<T>(o) : nullptr;
    auto *query = data<T>(q), *key = data<T>(k), *value = data<T>(v);
    at::parallel_for(0, q.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
      auto* const own = memory + at::get_thread_num() * scratch.size(1);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / heads, head = unit % heads;
        const int64_t at = row * shape.queries * shape.query_stride + head * dim;
        const int64_t from = row * shape.keys * shape.key_stride + head / share * dim;
        simd::best<T>().attention(
            shape, bounds.of_row(row), query + at, key + from, value + from,
            so_far == nullptr ? nullptr : so_far + at, continues,
            out == nullptr ? nullptr : out + at, log + unit * shape.queries, own);
      }
    });
  });
}

at::Tensor attention_delta(const at::Tensor& o, const at::Tensor& d_o) {
  const auto shape = shape_of(o, o);
  const int64_t heads = o.size(2);
  const auto delta = at::empty({o.size(0), heads, shape.queries}, wide_options(o));
  for_dtype(o, [&]<class T>(Of<T>) {
    auto *out = data<T>(o), *d_out = data<T>(d_o);
    auto* to = data<Wide<T>>(delta);
    at::parallel_for(0, o.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t at = unit / heads * shape.queries * shape.query_stride +
                           unit % heads * shape.head_dim;
        simd::best<T>().attention_delta(shape, out + at, d_out + at,
                                        to + unit * shape.queries);
      }
    });
  });
  return delta;
}

void attention_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const QueryPlaces& queries, const at::Tensor& key_positions,
                        const at::Tensor& lse, const at::Tensor& delta,
                        const at::Tensor& d_o, const AttentionGradient& gradient) {
  backward(q, k, v, queries, key_positions, lse, delta, d_o, gradient, {});
}

void add_attention_backward(const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const QueryPlaces& queries,
                            const at::Tensor& key_positions, const at::Tensor& lse,
                            const at::Tensor& delta, const at::Tensor& d_o,
                            const AttentionGradient& sums) {
  backward(q, k, v, queries, key_positions, lse, delta, d_o, {}, sums);
}

int64_t attention_blocks(const QueryPlaces& queries, const at::Tensor& key_positions) {
  const Bounds bounds(queries, key_positions);
  const simd::AttentionShape shape = {.queries = queries.positions.size(0),
                                      .keys = key_positions.size(0),
                                      .head_dim = 1,
                                      .query_stride = 1,
                                      .key_stride = 1,
                                      .scale = 1};
  int64_t count = 0;
  for (int64_t row = 0; row < bounds.rows(); ++row) {
    count += simd::best<float>().attention_blocks(shape, bounds.of_row(row));
  }
  return count;
}

}  // namespace torchtitan::ops::fused
