#include "ops/fused.h"

#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/cross_entropy.h"
#include "ops/fused_dtype.h"

namespace torchtitan::ops::fused {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements that make a thread worth while
// Partial sums over rows are always of this many blocks, so that the order of additions
// does not depend on the number of threads.
constexpr int64_t kBlocks = 32;

using simd::Wide;

int64_t grain(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_per_item));
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

void rope_(const at::Tensor& x, const RopeTable& table, const at::Tensor& positions,
           Turn turn) {
  const int64_t heads = x.size(2);
  const int64_t head_dim = x.size(3);
  const int64_t seq_len = x.size(1);
  check_rope(x, table, positions);
  for_dtype(x, [&]<class T>(Of<T>) {
    auto* values = data<T>(x);
    auto *cos = data<Wide<T>>(table.cos), *sin = data<Wide<T>>(table.sin);
    const auto* position = positions.const_data_ptr<int64_t>();
    const auto sign = turn == Turn::kForward ? Wide<T>(1) : Wide<T>(-1);
    at::parallel_for(0, x.size(0) * seq_len, grain(heads * head_dim),
                     [&](int64_t begin, int64_t end) {
                       simd::best<T>().rope(values + begin * heads * head_dim, cos, sin,
                                            sign, position, begin, end - begin, seq_len,
                                            heads, head_dim);
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

}  // namespace torchtitan::ops::fused
