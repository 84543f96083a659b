#include "nn/parameter_group.h"

#include <ATen/ops/add.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <numeric>
#include <span>

#include "base/checked_math.h"
#include "nn/initialize.h"

namespace torchtitan::nn {
namespace {

int64_t numel_of(std::span<const int64_t> shape) {
  return base::checked_product(shape);
}

// Elements in one row (all dims but the first).
int64_t row_numel(const ParameterSpec& parameter) {
  return numel_of(std::span(parameter.shape).subspan(1));
}

// A view with a version counter of its own: refilling the flat buffer between forward
// and backward is not an in-place change of what autograd saved.
at::Tensor independent_view(const at::Tensor& flat, int64_t offset,
                            const std::vector<int64_t>& shape) {
  return flat.narrow(0, offset, numel_of(shape)).view(shape).variable_data();
}

}  // namespace

ParameterGroup::ParameterGroup(ParameterGroupSpec spec, GroupOptions options)
    : spec_(std::move(spec)), options_(options) {
  for (const auto& parameter : spec_.parameters) {
    TORCH_CHECK_VALUE(!parameter.shape.empty(), "parameter ", parameter.name,
                      ": expected at least one dim, found none");
  }
}

int64_t ParameterGroup::whole_numel() const {
  int64_t numel = 0;
  for (const auto& parameter : spec_.parameters) {
    numel = base::checked_add(numel, numel_of(parameter.shape));
  }
  return numel;
}

void ParameterGroup::allocate_local(int64_t rank, int64_t num_ranks, bool is_writer) {
  int64_t numel = 0;
  for (const auto& parameter : spec_.parameters) {
    shard_offsets_.push_back(numel);
    numel += base::ceil_div(parameter.shape[0], num_ranks) * row_numel(parameter);
  }
  const auto options = at::TensorOptions().device(options_.device);
  master_ = at::zeros({numel}, options.dtype(options_.master_dtype));
  gradient_ = at::zeros({numel}, options.dtype(options_.reduce_dtype));
  for (size_t slot = 0; slot < spec_.parameters.size(); ++slot) {
    const auto& parameter = spec_.parameters[slot];
    const int64_t rows = parameter.shape[0];
    const int64_t chunk = base::ceil_div(rows, num_ranks);
    const int64_t first = std::min(rank * chunk, rows);
    std::vector<int64_t> local_shape = parameter.shape;
    local_shape[0] = std::min(chunk, rows - first);
    auto offset = parameter.offset();
    offset[0] += first;
    shards_.push_back(
        {.name = parameter.name,
         .global_shape = parameter.whole_shape(),
         .offset = std::move(offset),
         .value = independent_view(master_, shard_offsets_[slot], local_shape),
         .gradient = independent_view(gradient_, shard_offsets_[slot], local_shape),
         .is_writer = is_writer && parameter.is_first_copy});
  }
}

TensorList ParameterGroup::counted_gradients() const {
  TensorList views;
  int64_t begin = 0;
  const auto add = [&](int64_t end) {
    if (end > begin) views.push_back(gradient_.narrow(0, begin, end - begin));
  };
  for (size_t slot = 0; slot < shards_.size(); ++slot) {
    if (spec_.parameters[slot].is_first_copy) continue;
    add(shard_offsets_[slot]);
    begin = slot + 1 < shards_.size() ? shard_offsets_[slot + 1] : gradient_.numel();
  }
  add(gradient_.numel());
  return views;
}

TensorList ParameterGroup::shard_views(const at::Tensor& flat) const {
  TORCH_CHECK_VALUE(flat.dim() == 1 && flat.numel() == master_.numel(), "group ",
                    spec_.name, ": expected a flat tensor of ", master_.numel(),
                    " elements, got shape ", flat.sizes());
  TensorList views;
  for (size_t slot = 0; slot < shards_.size(); ++slot) {
    views.push_back(independent_view(flat, shard_offsets_[slot],
                                     shards_[slot].value.sizes().vec()));
  }
  return views;
}

TensorList ParameterGroup::whole_views(const at::Tensor& flat) const {
  TensorList views;
  int64_t offset = 0;
  for (const auto& parameter : spec_.parameters) {
    views.push_back(independent_view(flat, offset, parameter.shape));
    offset += numel_of(parameter.shape);
  }
  return views;
}

void ParameterGroup::make_leaves(const at::Tensor& flat) {
  leaves_ = whole_views(flat);
  for (auto& leaf : leaves_) leaf.set_requires_grad(true);
}

void ParameterGroup::attach_gradients(const TensorList& gradients) {
  for (size_t slot = 0; slot < leaves_.size(); ++slot) {
    auto& leaf = leaves_[slot];
    // Otherwise the engine rounds each gradient to the leaf's dtype before adding it.
    if (leaf.scalar_type() != gradients[slot].scalar_type()) {
      leaf.set_grad_dtype(gradients[slot].scalar_type());
    }
    leaf.mutable_grad() = gradients[slot];
  }
}

void ParameterGroup::start_replica_reduce() {
  replica_reduce_ = replica_axis().all_reduce(gradient_);
}

void ParameterGroup::wait_replica_reduce() { replica_reduce_.wait(); }

void ParameterGroup::share_with(collectives::Group axis, std::vector<int64_t> ranks) {
  copy_axis_ = std::move(axis);
  copy_ranks_ = std::move(ranks);
}

void ParameterGroup::start_copy_sum() {
  copies_.clear();
  for (const int64_t rank : copy_ranks_) {
    auto& copy = copies_.emplace_back();
    if (rank == copy_axis_.rank()) continue;
    copy.gradient = at::empty_like(gradient_);
    copy.sent = copy_axis_.send(gradient_, rank);
    copy.received = copy_axis_.recv(copy.gradient, rank);
  }
}

void ParameterGroup::wait_copy_sum() {
  at::Tensor sum;
  for (const auto& copy : copies_) {
    copy.sent.wait();
    copy.received.wait();
    const auto& gradient = copy.gradient.defined() ? copy.gradient : gradient_;
    sum = sum.defined() ? at::add(sum, gradient) : gradient;
  }
  gradient_.copy_(sum);
  copies_.clear();
}

void ParameterGroup::initialize(uint64_t seed) {
  for (size_t slot = 0; slot < shards_.size(); ++slot) {
    fill_initial(shards_[slot].value, spec_.parameters[slot], shards_[slot].offset,
                 seed);
  }
}

}  // namespace torchtitan::nn
