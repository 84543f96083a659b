// A parameter group whose rows are spread over the ranks of the fsdp axis (ZeRO stage
// 3, Rajbhandari et al. 2020; per-parameter sharding as in PyTorch's FSDP2), and
// optionally copied over a replicate axis (hybrid sharding).
//
// Each parameter is split on dim 0 like torch.chunk: rank r holds rows
// [r * c, (r + 1) * c), c = ceil(rows / ranks); the last ranks may hold fewer or none.
// Shards are padded to c rows, so that a group is one all-gather and one
// reduce-scatter.
#pragma once

#include "core/buffer.h"
#include "nn/parameter_group.h"

namespace torchtitan::parallel::fsdp {

class ShardedGroup final : public nn::ParameterGroup {
 public:
  ShardedGroup(nn::ParameterGroupSpec spec, nn::GroupOptions options,
               collectives::Group shards, collectives::Group replicas);

  const collectives::Group& shard_axis() const override { return shard_axis_; }
  const collectives::Group& replica_axis() const override { return replicas_; }
  void refresh() override {}
  void zero_gradient() override;
  void start_unshard() override;
  void wait_unshard() override;
  void reshard() override;
  bool gathered() const override { return whole_.allocated(); }
  void prepare_gradients() override;
  void start_reduce() override;
  void wait_reduce() override;

 private:
  // Calls visit(rows of `whole`, the same rows of `packed`) for every rank's piece of
  // every parameter; packed is [ranks * local numel].
  template <class Visit>
  void for_each_piece(const nn::TensorList& whole, const at::Tensor& packed,
                      const Visit& visit) const;

  collectives::Group shard_axis_;
  collectives::Group replicas_;
  core::Buffer whole_;           // gathered parameters, compute_dtype
  core::Buffer whole_gradient_;  // gradients of the leaves, reduce_dtype
  nn::TensorList whole_parameters_;
  nn::TensorList gradient_views_;
  // A collective under way: all ranks' pieces, this rank's piece, and its end. The
  // gather of the next microbatch may start before the reduce of this one has ended.
  struct Transfer {
    at::Tensor packed;
    at::Tensor local;
    collectives::Handle handle;
  };
  Transfer gather_;
  Transfer reduce_;
};

}  // namespace torchtitan::parallel::fsdp
