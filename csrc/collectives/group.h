// A group of ranks and the verbs that move tensors between them.
//
// Group is a value: copying it shares the backend. A group of size one is the identity
// and has no backend, so a caller never asks whether an axis is in use. Backends are
// local threads (local_world.h), c10d (c10d_group.h), fake (fake_group.h); recording.h
// wraps any of them.
//
// Verbs start an operation and return a Handle at once. What the caller owes:
//  * every rank of the group starts the same verbs in the same order;
//  * from the start until wait() has returned, inputs are not written and outputs are
//    neither read nor written. Outputs are valid after wait() only, even if
//    completed();
//  * tensors are dense, contiguous and on one device; they need not require grad, and
//    no verb is seen by autograd. Handles keep them alive.
// After wait(): on a CPU the operation is finished, on this rank, for inputs and
// outputs. On CUDA the current stream has been made to wait for it and the host goes
// on. A sum has the same bits on all ranks. Local threads, fake and reduce_scatter add
// in rank order, 16-bit types in float32 and rounded once; an all_reduce of c10d may
// add in another order and round at every hop, so reduce in float32 or wider.
//
// Thrown at the door (c10::ValueError): a tensor, size, dtype, peer or split that does
// not fit, with what was expected. Thrown by a verb or wait(): CollectiveError.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace torchtitan::collectives {

class Backend;
class Work;

enum class ReduceOp { kSum, kMax, kMin };

// An operation failed or was given up: one line that names the rank to blame where it
// is known. The group cannot be used any more.
class CollectiveError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// An operation under way; a default one is complete. Copies share it. Dropping an
// unfinished handle is safe: the operation goes on, nobody learns how it ended.
class Handle {
 public:
  Handle() = default;
  explicit Handle(std::shared_ptr<Work> work);

  // True once wait() would not have to wait for other ranks. Never blocks or throws.
  bool completed() const;
  // Returns at once when called again. Polls, so that an abort and the deadline of the
  // group end it. One thread waits at a time.
  void wait() const;

 private:
  std::shared_ptr<Work> work_;
};

class Group {
 public:
  // The identity: rank 0 of 1.
  explicit Group(std::string name = "self");
  // `backend` may be null only as the identity; used by the makers of groups.
  Group(std::string name, std::shared_ptr<Backend> backend);

  int64_t rank() const;
  int64_t size() const;
  // Of the mesh axis, e.g. "fsdp".
  const std::string& name() const { return name_; }

  // tensor becomes the reduction over all ranks.
  Handle all_reduce(const at::Tensor& tensor, ReduceOp op = ReduceOp::kSum) const;
  // out [n * k] is all ranks' in [k] in rank order. Only numels count, not shapes; `in`
  // may be exactly the rank's own piece of `out`.
  Handle all_gather(const at::Tensor& out, const at::Tensor& in) const;
  // out [k] is the sum over ranks of piece rank() of in [n * k]. No overlap.
  Handle reduce_scatter(const at::Tensor& out, const at::Tensor& in) const;
  // Rows (dimension 0) of `in` go to the ranks in order, in_splits[j] of them to rank
  // j; `out` receives out_splits[j] rows from rank j. No overlap.
  Handle all_to_all(const at::Tensor& out, const at::Tensor& in,
                    std::vector<int64_t> out_splits,
                    std::vector<int64_t> in_splits) const;
  // tensor becomes that of rank `root`.
  Handle broadcast(const at::Tensor& tensor, int64_t root) const;
  // Between two ranks of the group; pairs with the same tag meet in order. NCCL knows
  // no tags, so there all pairs meet in order.
  Handle send(const at::Tensor& tensor, int64_t peer, int64_t tag = 0) const;
  Handle recv(const at::Tensor& tensor, int64_t peer, int64_t tag = 0) const;
  // wait() returns once all ranks have started it.
  Handle barrier() const;

  const std::shared_ptr<Backend>& backend() const { return backend_; }

 private:
  std::string name_;
  std::shared_ptr<Backend> backend_;
};

// The ranks of one mesh axis that this rank belongs to, slow to fast, itself included.
struct AxisRanks {
  std::string axis;
  std::vector<int64_t> ranks;
};

using GroupMap = std::map<std::string, Group>;

// One Group per axis: the identity where it has one rank, else what `make` returns.
// Every rank must list the same axes in the same order.
GroupMap make_groups(const std::vector<AxisRanks>& axes, int64_t rank,
                     const std::function<Group(const AxisRanks&)>& make);

}  // namespace torchtitan::collectives
