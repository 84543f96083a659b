#include "ops/fused.h"

#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>
#include <vector>

#include "ops/cross_entropy.h"
#include "ops/simd/kernels.h"

namespace torchtitan::ops::fused {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements that make a thread worth while
// Partial sums over rows are always of this many blocks, so that the order of additions
// does not depend on the number of threads.
constexpr int64_t kBlocks = 32;

using simd::Wide;

template <class T>
struct Of {
  using type = T;
};

template <class Run>
void with_type(const at::Tensor& x, const Run& run) {
  TORCH_CHECK(takes(x), "fused: expected bfloat16, float32 or float64 on a CPU, got ",
              x.scalar_type(), " on ", x.device());
  if (x.scalar_type() == at::kBFloat16) return run(Of<simd::BFloat16>{});
  if (x.scalar_type() == at::kFloat) return run(Of<float>{});
  run(Of<double>{});
}

// Working memory of attention: a row for each of torch's threads, found by its number.
// Made on meta too, so that what is measured there is what a run takes.
enum class Pass { kForward, kBackward };
at::Tensor attention_scratch(Pass pass, const simd::AttentionShape& shape,
                             const at::Tensor& like) {
  int64_t row = 0;
  with_type(like, [&]<class T>(Of<T>) {
    const auto& kernels = simd::best<T>();
    row = pass == Pass::kForward ? kernels.attention_scratch(shape)
                                 : kernels.attention_backward_scratch(shape);
  });
  return at::empty({at::get_num_threads(), row}, wide_options(like));
}

template <class Run>
void for_dtype(const at::Tensor& x, const Run& run) {
  with_type(x, [&](auto of) {
    if (!x.is_meta()) run(of);  // on meta there are shapes only, and run fills memory
  });
}

template <class T>
T* data(const at::Tensor& x) {
  TORCH_INTERNAL_ASSERT(x.is_contiguous());
  if constexpr (std::is_same_v<T, simd::BFloat16>) {
    return reinterpret_cast<T*>(x.mutable_data_ptr<at::BFloat16>());
  } else {
    return x.mutable_data_ptr<T>();
  }
}

template <class T>
T* data_or_null(const at::Tensor& x) {
  return x.defined() ? data<T>(x) : nullptr;
}

int64_t grain(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_per_item));
}

simd::AttentionShape shape_of(const at::Tensor& q, const at::Tensor& k) {
  return {.tokens = q.size(1),
          .head_dim = q.size(3),
          .query_stride = q.size(2) * q.size(3),
          .key_stride = k.size(2) * k.size(3),
          .scale = 1 / std::sqrt(static_cast<double>(q.size(3)))};
}

}  // namespace

bool takes(const at::Tensor& x) {
  return (x.is_cpu() || x.is_meta()) &&
         (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat ||
          x.scalar_type() == at::kDouble);
}

at::TensorOptions wide_options(const at::Tensor& x) {
  return x.options().dtype(at::toOpMathType(x.scalar_type()));
}

void rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
              double eps, const at::Tensor& y, const at::Tensor& rstd) {
  const int64_t dim = x.size(1);
  for_dtype(x, [&]<class T>(Of<T>) {
    auto *from = data<T>(x), *more = data_or_null<T>(residual), *w = data<T>(weight),
         *to = data<T>(y);
    auto* inverse = data<Wide<T>>(rstd);
    at::parallel_for(0, x.size(0), grain(dim), [&](int64_t begin, int64_t end) {
      simd::best<T>().rms_norm(
          from + begin * dim, more == nullptr ? nullptr : more + begin * dim, w,
          to + begin * dim, inverse + begin, end - begin, dim, eps);
    });
  });
}

void rms_norm_again(const at::Tensor& x, const at::Tensor& weight,
                    const at::Tensor& rstd, const at::Tensor& y) {
  const int64_t dim = x.size(1);
  for_dtype(x, [&]<class T>(Of<T>) {
    auto *from = data<T>(x), *w = data<T>(weight), *to = data<T>(y);
    auto* inverse = data<Wide<T>>(rstd);
    at::parallel_for(0, x.size(0), grain(dim), [&](int64_t begin, int64_t end) {
      simd::best<T>().rms_norm_again(from + begin * dim, w, inverse + begin,
                                     to + begin * dim, end - begin, dim);
    });
  });
}

void rms_norm_backward(const at::Tensor& dy, double scale, const at::Tensor& x,
                       const at::Tensor& weight, const at::Tensor& rstd,
                       const at::Tensor& residual, const at::Tensor& dx,
                       const at::Tensor& dweight) {
  const int64_t dim = x.size(1);
  const int64_t rows = x.size(0);
  const int64_t block = (rows + kBlocks - 1) / kBlocks;
  const auto partial = at::zeros({kBlocks, dim}, wide_options(x));
  for_dtype(x, [&]<class T>(Of<T>) {
    auto *g = data<T>(dy), *from = data<T>(x), *w = data<T>(weight),
         *more = data_or_null<T>(residual), *to = data<T>(dx);
    auto *inverse = data<Wide<T>>(rstd), *sums = data<Wide<T>>(partial);
    at::parallel_for(0, kBlocks, grain(block * dim), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t row = std::min(b * block, rows);
        const int64_t count = std::min(block, rows - row);
        simd::best<T>().rms_norm_backward(g + row * dim, static_cast<Wide<T>>(scale),
                                          from + row * dim, w, inverse + row,
                                          more == nullptr ? nullptr : more + row * dim,
                                          to + row * dim, sums + b * dim, count, dim);
      }
    });
  });
  dweight.add_(partial.sum(0));
}

void embedding_backward(const at::Tensor& dy, const at::Tensor& ids,
                        const at::Tensor& dweight) {
  const auto flat_ids = ids.contiguous().view({-1});
  const auto rows = dy.contiguous().view({flat_ids.numel(), -1});
  if (!takes(rows) || wide_options(rows).dtype() != dweight.dtype()) {
    at::Tensor(dweight).index_add_(0, flat_ids, rows.to(dweight.scalar_type()));
    return;
  }
  const int64_t dim = rows.size(1);
  for_dtype(rows, [&]<class T>(Of<T>) {
    const auto* id = flat_ids.const_data_ptr<int64_t>();
    auto* from = data<T>(rows);
    auto* to = data<Wide<T>>(dweight);
    // Threads share out the columns: tokens of one id are added in their order.
    at::parallel_for(0, dim, grain(rows.size(0)), [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < rows.size(0); ++t) {
        for (int64_t i = begin; i < end; ++i) to[id[t] * dim + i] += from[t * dim + i];
      }
    });
  });
}

void rope_(const at::Tensor& x, const RopeTable& table, Turn turn) {
  const int64_t heads = x.size(2);
  const int64_t head_dim = x.size(3);
  const int64_t seq_len = x.size(1);
  TORCH_CHECK_VALUE(seq_len <= table.cos.size(0) && head_dim == 2 * table.cos.size(1),
                    "rope_: x must be [B, S <= ", table.cos.size(0), ", H, ",
                    2 * table.cos.size(1), "], got shape ", x.sizes());
  for_dtype(x, [&]<class T>(Of<T>) {
    auto* values = data<T>(x);
    auto *cos = data<Wide<T>>(table.cos), *sin = data<Wide<T>>(table.sin);
    const auto sign = turn == Turn::kForward ? Wide<T>(1) : Wide<T>(-1);
    at::parallel_for(0, x.size(0) * seq_len, grain(heads * head_dim),
                     [&](int64_t begin, int64_t end) {
                       simd::best<T>().rope(values + begin * heads * head_dim, cos, sin,
                                            sign, begin, end - begin, seq_len, heads,
                                            head_dim);
                     });
  });
}

void swiglu(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& out) {
  for_dtype(gate, [&]<class T>(Of<T>) {
    auto *g = data<T>(gate), *u = data<T>(up), *to = data<T>(out);
    at::parallel_for(0, gate.numel(), kGrain, [&](int64_t begin, int64_t end) {
      simd::best<T>().swiglu(g + begin, u + begin, to + begin, end - begin);
    });
  });
}

void swiglu_backward_(const at::Tensor& d, const at::Tensor& gate,
                      const at::Tensor& up) {
  for_dtype(gate, [&]<class T>(Of<T>) {
    auto *gradient = data<T>(d), *g = data<T>(gate), *u = data<T>(up);
    at::parallel_for(0, gate.numel(), kGrain, [&](int64_t begin, int64_t end) {
      simd::best<T>().swiglu_backward(gradient + begin, g + begin, u + begin,
                                      end - begin);
    });
  });
}

double cross_entropy_(const at::Tensor& logits, const at::Tensor& labels,
                      Gradient gradient) {
  const int64_t rows = logits.size(0);
  const int64_t classes = logits.size(1);
  if (logits.is_meta()) return 0;
  const auto* label = labels.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < rows; ++r) {
    TORCH_CHECK_INDEX(label[r] == kIgnoreIndex || (label[r] >= 0 && label[r] < classes),
                      "cross_entropy_: label ", label[r], " is out of bounds for ",
                      classes, " classes");
  }
  std::vector<double> sums(kBlocks, 0.0);
  const int64_t block = (rows + kBlocks - 1) / kBlocks;
  for_dtype(logits, [&]<class T>(Of<T>) {
    auto* values = data<T>(logits);
    at::parallel_for(
        0, kBlocks, grain(block * classes), [&](int64_t begin, int64_t end) {
          for (int64_t b = begin; b < end; ++b) {
            const int64_t row = std::min(b * block, rows);
            sums[static_cast<size_t>(b)] = simd::best<T>().cross_entropy(
                values + row * classes, label + row, kIgnoreIndex,
                std::min(block, rows - row), classes, gradient == Gradient::kInPlace);
          }
        });
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const at::Tensor& o, const at::Tensor& lse) {
  const auto shape = shape_of(q, k);
  const int64_t heads = q.size(2), tokens = shape.tokens, dim = shape.head_dim;
  const int64_t share = heads / k.size(2);
  const auto scratch = attention_scratch(Pass::kForward, shape, q);
  for_dtype(q, [&]<class T>(Of<T>) {
    const auto& kernels = simd::best<T>();
    auto *const memory = data<Wide<T>>(scratch), *const sums = data<Wide<T>>(lse);
    auto *query = data<T>(q), *key = data<T>(k), *value = data<T>(v), *out = data<T>(o);
    at::parallel_for(0, q.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
      auto* const own = memory + at::get_thread_num() * scratch.size(1);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / heads * tokens, head = unit % heads;
        const int64_t at = row * shape.query_stride + head * dim;
        const int64_t from = row * shape.key_stride + head / share * dim;
        kernels.attention(shape, query + at, key + from, value + from, out + at,
                          sums + unit * tokens, own);
      }
    });
  });
}

void causal_attention_backward(const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const at::Tensor& o,
                               const at::Tensor& lse, const at::Tensor& d_o,
                               const at::Tensor& dq, const at::Tensor& dk,
                               const at::Tensor& dv) {
  const auto shape = shape_of(q, k);
  const int64_t groups = k.size(2), tokens = shape.tokens, dim = shape.head_dim;
  const int64_t share = q.size(2) / groups;
  const auto scratch = attention_scratch(Pass::kBackward, shape, q);
  for_dtype(q, [&]<class T>(Of<T>) {
    const auto& kernels = simd::best<T>();
    auto *const memory = data<Wide<T>>(scratch), *const sums = data<Wide<T>>(lse);
    auto *query = data<T>(q), *key = data<T>(k), *value = data<T>(v), *out = data<T>(o),
         *d_out = data<T>(d_o), *d_query = data<T>(dq), *d_key = data<T>(dk),
         *d_value = data<T>(dv);
    at::parallel_for(0, q.size(0) * groups, 1, [&](int64_t begin, int64_t end) {
      auto* const own = memory + at::get_thread_num() * scratch.size(1);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / groups * tokens, group = unit % groups;
        const int64_t at = row * shape.query_stride + group * share * dim;
        const int64_t from = row * shape.key_stride + group * dim;
        kernels.attention_backward(shape, share, query + at, key + from, value + from,
                                   out + at, sums + unit * share * tokens, d_out + at,
                                   d_query + at, d_key + from, d_value + from, own);
      }
    });
  });
}

}  // namespace torchtitan::ops::fused
