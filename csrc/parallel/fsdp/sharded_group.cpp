#include "parallel/fsdp/sharded_group.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "base/checked_math.h"

namespace torchtitan::parallel::fsdp {
namespace {

int64_t numel_of(const nn::ParameterGroupSpec& spec) {
  int64_t numel = 0;
  for (const auto& parameter : spec.parameters) {
    numel = base::checked_add(numel, base::checked_product(parameter.shape));
  }
  return numel;
}

}  // namespace

ShardedGroup::ShardedGroup(nn::ParameterGroupSpec spec, nn::GroupOptions options,
                           collectives::Group shards, collectives::Group replicas)
    : ParameterGroup(std::move(spec), options), shard_axis_(std::move(shards)),
      replicas_(std::move(replicas)),
      whole_(numel_of(spec_),
             at::TensorOptions().device(options.device).dtype(options.compute_dtype)),
      whole_gradient_(
          numel_of(spec_),
          at::TensorOptions().device(options.device).dtype(options.reduce_dtype)) {
  allocate_local(shard_axis_.rank(), shard_axis_.size(), replicas_.rank() == 0);
  // Views are cut while there is memory behind them and stay valid without it.
  whole_.allocate();
  make_leaves(whole_.flat());
  whole_parameters_ = whole_views(whole_.flat());
  whole_.release();
  whole_gradient_.allocate();
  gradient_views_ = whole_views(whole_gradient_.flat());
  whole_gradient_.release();
}

template <class Visit>
void ShardedGroup::for_each_piece(const nn::TensorList& whole, const at::Tensor& packed,
                                  const Visit& visit) const {
  // A dry run may pretend so many ranks that visiting them takes long.
  if (packed.is_meta()) return;
  const int64_t ranks = shard_axis_.size();
  for (size_t slot = 0; slot < whole.size(); ++slot) {
    const int64_t rows = whole[slot].size(0);
    const int64_t chunk = base::ceil_div(rows, ranks);
    for (int64_t rank = 0; rank < ranks && rank * chunk < rows; ++rank) {
      const int64_t count = std::min(chunk, rows - rank * chunk);
      const auto piece = whole[slot].narrow(0, rank * chunk, count);
      const int64_t offset = rank * master_.numel() + shard_offsets_[slot];
      visit(piece, packed.narrow(0, offset, piece.numel()).view(piece.sizes()));
    }
  }
}

void ShardedGroup::zero_gradient() {
  const c10::AutoGradMode off(false);
  gradient_.zero_();
}

void ShardedGroup::start_unshard() {
  const c10::AutoGradMode off(false);
  gather_.local = master_.to(options_.compute_dtype);
  gather_.packed =
      at::empty({master_.numel() * shard_axis_.size()}, gather_.local.options());
  gather_.handle = shard_axis_.all_gather(gather_.packed, gather_.local);
}

void ShardedGroup::wait_unshard() {
  const c10::AutoGradMode off(false);
  gather_.handle.wait();
  whole_.allocate();
  for_each_piece(whole_parameters_, gather_.packed,
                 [](const auto& piece, const auto& packed) { piece.copy_(packed); });
  gather_ = {};
}

void ShardedGroup::reshard() { whole_.release(); }

void ShardedGroup::prepare_gradients() {
  if (whole_gradient_.allocated()) return;
  const c10::AutoGradMode off(false);
  whole_gradient_.allocate();
  whole_gradient_.flat().zero_();
  attach_gradients(gradient_views_);
}

void ShardedGroup::start_reduce() {
  const c10::AutoGradMode off(false);
  // Padding rows are summed too, so they must be zero.
  reduce_.packed =
      at::zeros({gradient_.numel() * shard_axis_.size()}, gradient_.options());
  for_each_piece(gradient_views_, reduce_.packed,
                 [](const auto& piece, const auto& packed) { packed.copy_(piece); });
  whole_gradient_.release();
  reduce_.local = at::empty_like(gradient_);
  reduce_.handle = shard_axis_.reduce_scatter(reduce_.local, reduce_.packed);
}

void ShardedGroup::wait_reduce() {
  const c10::AutoGradMode off(false);
  reduce_.handle.wait();
  gradient_.add_(reduce_.local);
  reduce_ = {};
}

}  // namespace torchtitan::parallel::fsdp
