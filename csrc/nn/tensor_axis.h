// The ranks that divide the work of each segment among them: products by their weights
// (tensor parallelism, Shoeybi et al. 2019), everything else by tokens (sequence
// parallelism, Korthikanti et al. 2022). All of them read the same batch.
//
// A batch of N tokens, row after row, is dealt out in equal stretches: rank r has
// tokens [r * n, (r + 1) * n), n = N / size(). A tensor of hidden states [B, s, E],
// s = S / size(), is such a stretch, whatever B.
//
// With one rank every verb is the identity and nothing is copied. Verbs wait for their
// result; on meta they only have shapes, but call the group all the same.
#pragma once

#include "collectives/group.h"
#include "nn/segment.h"

namespace torchtitan::nn {

class TensorAxis {
 public:
  // One rank.
  TensorAxis() : group_("tp") {}
  explicit TensorAxis(collectives::Group group) : group_(std::move(group)) {}

  const collectives::Group& group() const { return group_; }
  int64_t rank() const { return group_.rank(); }
  int64_t size() const { return group_.size(); }
  bool is_split() const { return size() > 1; }

  // Not seen by autograd. x and partial are contiguous.
  // [n, E] of each rank -> [N, E]; also [k] -> [size() * k].
  at::Tensor gather(const at::Tensor& x) const;
  // [N, E] -> this rank's [n, E] of the sum over the ranks.
  at::Tensor sum_scatter(const at::Tensor& partial) const;
  // y [n, E] += this rank's tokens of the sum over the ranks of x [N, I] w^T [I, E].
  void add_product_(const at::Tensor& y, const at::Tensor& x,
                    const at::Tensor& w) const;
  // y [n, E] = this rank's tokens of the sum over the ranks of dy [N, O] w [O, E].
  void sum_product_(const at::Tensor& y, const at::Tensor& dy,
                    const at::Tensor& w) const;

  // Where a rank's tokens add to the gradient of a parameter that all ranks hold: the
  // gradient itself, or with several ranks zeros like it, for add_sums_().
  at::Tensor partial_gradient(const at::Tensor& gradient) const;
  // gradients[i] += sum over the ranks of partials[i]; one transfer for all. What is
  // its own partial is complete.
  void add_sums_(const TensorList& gradients, const TensorList& partials) const;

  // The collective of gather(x) or sum_scatter(x), where `numel` elements like x's are
  // gathered or scattered; of add_sums_ of them. Nothing with one rank.
  enum class Verb { kGather, kSumScatter, kSum };
  void note(std::vector<plan::Exchange>& exchanges, Verb verb, int64_t numel,
            const at::TensorOptions& options) const;

 private:
  collectives::Group group_;
};

// The same for autograd, each with its transpose as backward.
// x [B, s, E] of each rank -> [B, S, E]; backward sums over the ranks.
at::Tensor gather_tokens(const at::Tensor& x, const TensorAxis& axis);
// [B, S, E] -> [B, s, E] of the sum over the ranks.
at::Tensor sum_scatter_tokens(const at::Tensor& partial, const TensorAxis& axis);
// The parameter itself, used on this rank's tokens; its gradient is the sum over the
// ranks.
at::Tensor shared_by_ranks(const at::Tensor& parameter, const TensorAxis& axis);
// Columns of each rank, [..., columns of rank] -> [..., total], divided like
// torch.chunk. All ranks go on alike with the result: backward takes this rank's part.
at::Tensor gather_columns(const at::Tensor& x, int64_t total, const TensorAxis& axis);

}  // namespace torchtitan::nn
