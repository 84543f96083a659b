#include "parallel/context/over_keys.h"

#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "ops/attention.h"
#include "ops/fused.h"

namespace torchtitan::parallel::context {

namespace fused = ops::fused;

at::TensorOptions wide_options(const at::Tensor& x) {
  return x.options().dtype(at::toOpMathType(x.scalar_type()));
}

SumOverKeys::SumOverKeys(at::Tensor q, QueryPlaces queries, int64_t blocks)
    : q_(std::move(q)), queries_(std::move(queries)), blocks_(blocks) {
  if (!fused::takes(q_)) return;
  o_ = at::empty(q_.sizes(), q_.options());
  const auto wide = wide_options(q_);
  const bool is_wide = q_.dtype() == wide.dtype();
  if (blocks_ > 1) sum_ = is_wide ? o_ : at::empty(q_.sizes(), wide);
  lse_ = at::empty({q_.size(0), q_.size(2), q_.size(1)}, wide);
}

void SumOverKeys::add(const at::Tensor& k, const at::Tensor& v,
                      const at::Tensor& key_positions) {
  const bool first = added_ == 0, last = added_ + 1 == blocks_;
  ++added_;
  if (fused::takes(q_)) {
    const auto part = first && last ? fused::Part::kOnly
                      : first       ? fused::Part::kFirst
                      : last        ? fused::Part::kLast
                                    : fused::Part::kMiddle;
    fused::attention(q_, k, v, queries_, key_positions, part, sum_, o_, lse_);
  } else {
    const auto visible =
        ops::visible_keys(queries_.positions, key_positions, queries_.document_starts);
    auto part = ops::attention_part(q_, k, v, visible);
    if (!first) part = ops::merge({sum_, lse_}, part);
    sum_ = part.o;
    lse_ = part.lse;
    if (last) o_ = sum_.to(q_.scalar_type());
  }
  if (last) sum_ = at::Tensor();
}

GradientOverKeys::GradientOverKeys(at::Tensor q, QueryPlaces queries,
                                   const Result& result, at::Tensor d_o)
    : q_(std::move(q)), queries_(std::move(queries)), lse_(result.lse),
      d_o_(std::move(d_o)) {
  dq_ = at::zeros(q_.sizes(), wide_options(q_));
  if (fused::takes(q_)) {
    delta_ = fused::attention_delta(result.o, d_o_);
  } else {
    const auto product = result.o.to(dq_.scalar_type()).mul(d_o_);
    delta_ = product.sum(-1).transpose(1, 2);
  }
}

void GradientOverKeys::add(const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& key_positions, const at::Tensor& d_kv) {
  if (fused::takes(q_)) {
    fused::add_attention_backward(q_, k, v, queries_, key_positions, lse_, delta_, d_o_,
                                  {dq_, d_kv.select(0, 0), d_kv.select(0, 1)});
    return;
  }
  const auto visible =
      ops::visible_keys(queries_.positions, key_positions, queries_.document_starts);
  const auto part = ops::attention_part_backward(q_, k, v, visible, lse_, delta_, d_o_);
  dq_.add_(part.q);
  d_kv.select(0, 0).add_(part.k);
  d_kv.select(0, 1).add_(part.v);
}

at::Tensor GradientOverKeys::dq() const { return dq_.to(q_.scalar_type()); }

}  // namespace torchtitan::parallel::context
