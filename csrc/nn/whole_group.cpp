#include "nn/whole_group.h"

#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>

namespace torchtitan::nn {

WholeGroup::WholeGroup(ParameterGroupSpec spec, GroupOptions options,
                       collectives::Group replicas)
    : ParameterGroup(std::move(spec), options), replicas_(std::move(replicas)) {
  allocate_local(/*rank=*/0, /*num_ranks=*/1, /*is_writer=*/replicas_.rank() == 0);
  compute_ = options.compute_dtype == options.master_dtype
                 ? master_
                 : at::empty_like(master_, options.compute_dtype);
  make_leaves(compute_);
  gradient_views_ = whole_views(gradient_);
}

void WholeGroup::refresh() {
  const c10::AutoGradMode off(false);
  if (!compute_.is_same(master_)) compute_.copy_(master_);
}

void WholeGroup::zero_gradient() {
  const c10::AutoGradMode off(false);
  gradient_.zero_();
  attach_gradients(gradient_views_);
}

}  // namespace torchtitan::nn
