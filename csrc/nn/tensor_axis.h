// The ranks that divide the work of each segment among them: products by their weights
// (tensor parallelism, Shoeybi et al. 2019), everything else by tokens (sequence
// parallelism, Korthikanti et al. 2022). All of them read the same batch.
//
// A batch of N tokens, row after row, is dealt out in equal stretches: rank r has
// tokens [r * n, (r + 1) * n), n = N / size(). A tensor of hidden states [B, s, E],
// s = S / size(), is such a stretch, whatever B.
//
// With one rank every verb is the identity and nothing is copied.
//
// An axis that overlaps its exchanges with products (Wang et al. 2023) goes around a
// ring: while one rank's tokens are multiplied, the next ones travel. Sums are then
// added in the order of the ring, else as the group's reduce_scatter does.
#pragma once

#include <functional>

#include "collectives/group.h"
#include "nn/segment.h"

namespace torchtitan::nn {

// The result of a transfer under way.
class Pending {
 public:
  // Complete already.
  explicit Pending(at::Tensor result) : result_(std::move(result)) {}
  Pending(at::Tensor result, collectives::Handle handle)
      : result_(std::move(result)), handle_(std::move(handle)) {}

  at::Tensor wait() const {
    handle_.wait();
    return result_;
  }

 private:
  at::Tensor result_;
  collectives::Handle handle_;
};

enum class Overlap { kNone, kRing };

class TensorAxis {
 public:
  // One rank.
  TensorAxis() : group_("tp") {}
  TensorAxis(collectives::Group group, Overlap overlap)
      : group_(std::move(group)), overlap_(overlap) {}

  const collectives::Group& group() const { return group_; }
  int64_t rank() const { return group_.rank(); }
  int64_t size() const { return group_.size(); }
  bool is_split() const { return size() > 1; }

  // Nothing below is seen by autograd; tensors are contiguous.

  // [n, E] of each rank -> [N, E]; also [k] -> [size() * k].
  Pending start_gather(const at::Tensor& x) const;
  at::Tensor gather(const at::Tensor& x) const { return start_gather(x).wait(); }
  // The same; `visit` is called with the first row and the rows of each stretch of the
  // result once they are there, whatever the order, all rows once.
  using Visit = std::function<void(int64_t first, const at::Tensor& rows)>;
  at::Tensor gather(const at::Tensor& x, const Visit& visit) const;

  // [N, E] -> this rank's [n, E] of the sum over the ranks.
  at::Tensor sum_scatter(const at::Tensor& partial) const;
  // The same of a partial sum of `rows` rows shaped and typed like `like`'s, which
  // `produce` writes, stretch by stretch: rows [first, first + out.size(0)) into out.
  using Produce = std::function<void(int64_t first, const at::Tensor& out)>;
  Pending start_sum_scatter(int64_t rows, const at::Tensor& like,
                            const Produce& produce) const;

  // Where a rank's tokens add to the gradient of a parameter that all ranks hold: the
  // gradient itself, or with several ranks zeros like it, for add_sums_().
  at::Tensor partial_gradient(const at::Tensor& gradient) const;
  // gradients[i] += sum over the ranks of partials[i]; one transfer for all. What is
  // its own partial is complete.
  void add_sums_(const TensorList& gradients, const TensorList& partials) const;

  // Notes the collectives of a verb above, where `numel` elements of these options are
  // gathered or scattered in all, or summed; those in stretches are told apart. Nothing
  // with one rank.
  enum class Verb {
    kGather,
    kGatherStretches,
    kSumScatter,
    kSumScatterStretches,
    kSum
  };
  void note(std::vector<plan::Exchange>& exchanges, Verb verb, int64_t numel,
            const at::TensorOptions& options) const;

 private:
  collectives::Group group_;
  Overlap overlap_ = Overlap::kNone;
};

// For autograd.
// [B, S, E] -> [B, s, E] of the sum over the ranks; backward gathers.
at::Tensor sum_scatter_tokens(const at::Tensor& partial, const TensorAxis& axis);
// The parameter itself, used on this rank's tokens; its gradient is the sum over the
// ranks, taken in float32 or wider.
at::Tensor shared_by_ranks(const at::Tensor& parameter, const TensorAxis& axis);
// Columns of each rank, [..., columns of rank] -> [..., total], divided like
// torch.chunk. All ranks go on alike with the result: backward takes this rank's part.
at::Tensor gather_columns(const at::Tensor& x, int64_t total, const TensorAxis& axis);

}  // namespace torchtitan::nn
