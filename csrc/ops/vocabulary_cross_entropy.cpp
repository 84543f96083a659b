#include "ops/vocabulary_cross_entropy.h"

#include <ATen/ops/amax.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "ops/cross_entropy.h"

namespace torchtitan::ops {
namespace {

at::ScalarType wide(const at::Tensor& logits) {
  return c10::promoteTypes(logits.scalar_type(), at::kFloat);
}

// Whether each label is one of the classes of this rank, and which, [N, 1] (0 if not).
struct Local {
  at::Tensor is_here;
  at::Tensor index;
};
Local local(const at::Tensor& labels, int64_t first, int64_t count) {
  const auto index = labels.sub(first);
  const auto is_here = index.ge(0).logical_and(index.lt(count));
  return {is_here, index.mul(is_here).unsqueeze(1)};
}

}  // namespace

at::Tensor vocabulary_statistics(const at::Tensor& logits, const at::Tensor& labels,
                                 int64_t first) {
  TORCH_CHECK_VALUE(
      logits.dim() == 2 && labels.dim() == 1 && logits.size(0) == labels.size(0),
      "vocabulary_statistics: logits must be [N, v] for labels [N], got ",
      logits.sizes(), " and ", labels.sizes());
  const auto dtype = wide(logits);
  if (logits.size(1) == 0) {
    const auto none = at::zeros({3, logits.size(0)}, logits.options().dtype(dtype));
    none.select(0, 0).fill_(-std::numeric_limits<double>::infinity());
    return none;
  }
  const auto largest = logits.amax(1, /*keepdim=*/true).to(dtype);
  const auto sum = logits.to(dtype).sub(largest).exp_().sum(1);
  const auto [is_here, index] = local(labels, first, logits.size(1));
  const auto at_label = logits.gather(1, index).squeeze(1).to(dtype);
  return at::stack({largest.squeeze(1), sum, at::where(is_here, at_label, 0.0)});
}

VocabularyLoss vocabulary_cross_entropy(const at::Tensor& statistics,
                                        const at::Tensor& labels) {
  const auto largest = statistics.select(1, 0);
  const auto most = largest.amax(0);
  const auto sum = statistics.select(1, 1).mul(largest.sub(most).exp_()).sum(0);
  const auto log_sum_exp = sum.log_().add_(most);
  const auto at_label = statistics.select(1, 2).sum(0);
  const auto losses =
      at::where(labels.ne(kIgnoreIndex), log_sum_exp.sub(at_label), 0.0);
  return {losses.sum(at::kDouble), log_sum_exp};
}

void vocabulary_gradient_(const at::Tensor& logits, const at::Tensor& labels,
                          int64_t first, const at::Tensor& log_sum_exp) {
  if (logits.size(1) == 0) return;
  const auto dtype = wide(logits);
  const auto probability = logits.scalar_type() == dtype ? logits : logits.to(dtype);
  at::Tensor(probability).sub_(log_sum_exp.unsqueeze(1)).exp_();
  const auto [is_here, index] = local(labels, first, logits.size(1));
  at::Tensor(probability).scatter_add_(1, index, is_here.unsqueeze(1).to(dtype).neg());
  const auto counts = labels.ne(kIgnoreIndex).unsqueeze(1);
  // Not a product: an ignored token's logits may be infinite.
  at::Tensor(probability).masked_fill_(counts.logical_not(), 0.0);
  if (!probability.is_same(logits)) at::Tensor(logits).copy_(probability);
}

}  // namespace torchtitan::ops
