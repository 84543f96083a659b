// The unit of gather, reduce and optimizer step: parameters that live in one flat
// buffer, as a whole or as this rank's shard. The step's program calls the verbs below;
// a verb that has nothing to do in a given layout does nothing.
//
//   master    [local_numel] stored values, in master_dtype
//   gradient  [local_numel] summed gradient of those values, in reduce_dtype
//   leaves    the whole parameters in compute_dtype, as autograd leaves
//
// Local buffers may hold padding after each parameter; it is zero and stays zero.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "nn/parameter.h"
#include "nn/segment.h"

namespace torchtitan::nn {

struct GroupOptions {
  at::ScalarType master_dtype;   // of stored parameters
  at::ScalarType compute_dtype;  // of gathered parameters
  at::ScalarType reduce_dtype;   // of gradients
  at::Device device;
};

// This rank's box of one parameter: elements offset[d] <= index[d] < offset[d] +
// value.size(d).
struct ParameterShard {
  std::string name;
  std::vector<int64_t> global_shape;
  std::vector<int64_t> offset;
  at::Tensor value;     // view of master, [rows, ...]; rows may be 0
  at::Tensor gradient;  // view of gradient, same shape
  bool is_writer;       // this rank saves it; false on all replicas but one
};

class ParameterGroup {
 public:
  ParameterGroup(ParameterGroupSpec spec, GroupOptions options);
  virtual ~ParameterGroup() = default;
  ParameterGroup(const ParameterGroup&) = delete;
  ParameterGroup& operator=(const ParameterGroup&) = delete;

  const ParameterGroupSpec& spec() const { return spec_; }
  const GroupOptions& options() const { return options_; }
  const TensorList& leaves() const { return leaves_; }
  const at::Tensor& master() const { return master_; }
  const at::Tensor& gradient() const { return gradient_; }
  const std::vector<ParameterShard>& shards() const { return shards_; }

  // The ranks over which shards of this group are spread (size 1: whole here), and
  // those that hold equal copies.
  virtual const collectives::Group& shard_axis() const = 0;
  virtual const collectives::Group& replica_axis() const = 0;

  // Leaves of whole parameters hold the new master values. Others do so when gathered.
  virtual void refresh() = 0;
  // A step begins with it: gradient is zero.
  virtual void zero_gradient() = 0;

  // Leaves are valid between wait_unshard() and reshard().
  virtual void start_unshard() = 0;
  virtual void wait_unshard() = 0;
  virtual void reshard() = 0;
  virtual bool gathered() const = 0;

  // Gradient views of the leaves are attached and, if freshly made, zero.
  virtual void prepare_gradients() = 0;

  // Sums the gradients of the leaves over shard_axis() into gradient().
  virtual void start_reduce() = 0;
  virtual void wait_reduce() = 0;
  // Sums gradient() over replica_axis().
  void start_replica_reduce();
  void wait_replica_reduce();

  // These ranks of `axis`, this one among them, hold the same parameters.
  void share_with(collectives::Group axis, std::vector<int64_t> ranks);
  // Sums gradient() over them, in the order of `ranks`: the same bits on all.
  void start_copy_sum();
  void wait_copy_sum();

  // Gradients of the shards that count in the global norm: those of which no earlier
  // rank of the tensor axis has a copy. Flat views of gradient(), as few as possible.
  TensorList counted_gradients() const;

  // Views of `flat`, which is laid out like master, in the shapes of shards().
  TensorList shard_views(const at::Tensor& flat) const;

  // Fills master with the initial numbers of (seed, name, global element index).
  void initialize(uint64_t seed);

 protected:
  // Lays out master, gradient and shards: of each parameter's shape this rank holds
  // rows [rank * chunk, (rank + 1) * chunk), chunk = ceil(rows / ranks).
  void allocate_local(int64_t rank, int64_t num_ranks, bool is_writer);
  // Autograd leaves over `flat`, which holds the whole parameters one after another.
  void make_leaves(const at::Tensor& flat);
  // Views of `flat` in the shapes of the whole parameters.
  TensorList whole_views(const at::Tensor& flat) const;
  void attach_gradients(const TensorList& gradients);
  int64_t whole_numel() const;

  ParameterGroupSpec spec_;
  GroupOptions options_;
  TensorList leaves_;
  at::Tensor master_;
  at::Tensor gradient_;
  std::vector<ParameterShard> shards_;
  std::vector<int64_t> shard_offsets_;  // of each shard in the flat local buffers

 private:
  struct Copy {
    at::Tensor gradient;  // of another rank
    collectives::Handle sent, received;
  };

  collectives::Handle replica_reduce_;
  collectives::Group copy_axis_;
  std::vector<int64_t> copy_ranks_;
  std::vector<Copy> copies_;  // under way, by rank; its own entry is empty
};

}  // namespace torchtitan::nn
