#include "collectives/group.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <numeric>

#include "collectives/backend.h"

namespace torchtitan::collectives {

namespace {

using at::Tensor;

void check_tensor(const char* verb, const char* role, const Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.defined(), verb, ": ", role, " is undefined");
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, verb, ": ", role,
                    " must be a dense tensor, but has layout ", tensor.layout());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), verb, ": ", role,
                    " must be contiguous, but has shape ", tensor.sizes(),
                    " and strides ", tensor.strides());
}

void check_pair(const char* verb, const Tensor& out, const Tensor& in) {
  check_tensor(verb, "out", out);
  check_tensor(verb, "in", in);
  TORCH_CHECK_VALUE(out.scalar_type() == in.scalar_type(), verb,
                    ": out and in must have one dtype, but have ", out.scalar_type(),
                    " and ", in.scalar_type());
  TORCH_CHECK_VALUE(out.device() == in.device(), verb,
                    ": out and in must be on one device, but are on ", out.device(),
                    " and ", in.device());
}

void check_reducible(const char* verb, const Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.scalar_type() != at::kBool && !tensor.is_complex() &&
                        !isFloat8Type(tensor.scalar_type()),
                    verb, ": cannot reduce ", tensor.scalar_type());
}

void check_peer(const char* verb, const char* role, int64_t peer, const Group& group) {
  TORCH_CHECK_VALUE(peer >= 0 && peer < group.size(), verb, ": ", role,
                    " must be a rank of group '", group.name(), "' of size ",
                    group.size(), ", but is ", peer);
}

void check_other(const char* verb, int64_t peer, const Group& group) {
  check_peer(verb, "peer", peer, group);
  TORCH_CHECK_VALUE(peer != group.rank(), verb, ": peer must be another rank, but ",
                    peer, " is this one");
}

void check_splits(const char* role, const Tensor& tensor,
                  const std::vector<int64_t>& splits, int64_t size) {
  TORCH_CHECK_VALUE(tensor.dim() > 0, "all_to_all: ", role, " must have a dimension");
  const bool negative = std::any_of(splits.begin(), splits.end(),
                                    [](int64_t split) { return split < 0; });
  const int64_t sum = std::accumulate(splits.begin(), splits.end(), int64_t{0});
  TORCH_CHECK_VALUE(
      static_cast<int64_t>(splits.size()) == size && !negative && sum == tensor.size(0),
      "all_to_all: ", role, "_splits must be ", size, " counts that sum to the ",
      tensor.size(0), " rows of ", role, ", but are ", at::IntArrayRef(splits));
}

// Nobody differentiates through a verb: it works on views without history.
Tensor plain(const Tensor& tensor) {
  return tensor.requires_grad() ? tensor.detach() : tensor;
}

Handle start(const Group& group, Operation operation) {
  return Handle(group.backend()->start(std::move(operation)));
}

Handle copy_to(const Tensor& out, const Tensor& in) {
  if (out.const_data_ptr() != in.const_data_ptr())
    plain(out).view(-1).copy_(plain(in).view(-1));
  return Handle();
}

}  // namespace

Handle::Handle(std::shared_ptr<Work> work) : work_(std::move(work)) {}

bool Handle::completed() const { return !work_ || work_->completed(); }

void Handle::wait() const {
  const at::NoGradGuard no_grad;
  if (work_) work_->wait();
}

Group::Group(std::string name) : name_(std::move(name)) {}

Group::Group(std::string name, std::shared_ptr<Backend> backend)
    : name_(std::move(name)), backend_(std::move(backend)) {
  TORCH_INTERNAL_ASSERT(!backend_ || backend_->size() > 1,
                        "a group of size one has no backend");
}

int64_t Group::rank() const { return backend_ ? backend_->rank() : 0; }

int64_t Group::size() const { return backend_ ? backend_->size() : 1; }

Handle Group::all_reduce(const Tensor& tensor, ReduceOp op) const {
  check_tensor("all_reduce", "tensor", tensor);
  check_reducible("all_reduce", tensor);
  if (!backend_) return Handle();
  return start(*this, {.verb = Verb::kAllReduce, .out = plain(tensor), .op = op});
}

Handle Group::all_gather(const Tensor& out, const Tensor& in) const {
  check_pair("all_gather", out, in);
  TORCH_CHECK_VALUE(out.numel() == in.numel() * size(), "all_gather: out must have ",
                    size(), " x ", in.numel(), " elements (group '", name_,
                    "'), but has shape ", out.sizes());
  const at::NoGradGuard no_grad;
  if (!backend_) return copy_to(out, in);
  return start(*this, {.verb = Verb::kAllGather, .out = plain(out), .in = plain(in)});
}

Handle Group::reduce_scatter(const Tensor& out, const Tensor& in) const {
  check_pair("reduce_scatter", out, in);
  check_reducible("reduce_scatter", out);
  TORCH_CHECK_VALUE(in.numel() == out.numel() * size(), "reduce_scatter: in must have ",
                    size(), " x ", out.numel(), " elements (group '", name_,
                    "'), but has shape ", in.sizes());
  const at::NoGradGuard no_grad;
  if (!backend_) return copy_to(out, in);
  return start(*this,
               {.verb = Verb::kReduceScatter, .out = plain(out), .in = plain(in)});
}

Handle Group::all_to_all(const Tensor& out, const Tensor& in,
                         std::vector<int64_t> out_splits,
                         std::vector<int64_t> in_splits) const {
  check_pair("all_to_all", out, in);
  check_splits("out", out, out_splits, size());
  check_splits("in", in, in_splits, size());
  TORCH_CHECK_VALUE(out.sizes().slice(1) == in.sizes().slice(1),
                    "all_to_all: rows of out and in must have one shape, but out has "
                    "shape ",
                    out.sizes(), " and in ", in.sizes());
  TORCH_CHECK_VALUE(out_splits[rank()] == in_splits[rank()], "all_to_all: rank ",
                    rank(), " sends itself ", in_splits[rank()], " rows, but expects ",
                    out_splits[rank()]);
  const at::NoGradGuard no_grad;
  if (!backend_) return copy_to(out, in);
  return start(*this, {.verb = Verb::kAllToAll,
                       .out = plain(out),
                       .in = plain(in),
                       .out_splits = std::move(out_splits),
                       .in_splits = std::move(in_splits)});
}

Handle Group::broadcast(const Tensor& tensor, int64_t root) const {
  check_tensor("broadcast", "tensor", tensor);
  check_peer("broadcast", "root", root, *this);
  if (!backend_) return Handle();
  return start(*this, {.verb = Verb::kBroadcast, .out = plain(tensor), .peer = root});
}

Handle Group::send(const Tensor& tensor, int64_t peer, int64_t tag) const {
  check_tensor("send", "tensor", tensor);
  check_other("send", peer, *this);
  return start(*this,
               {.verb = Verb::kSend, .in = plain(tensor), .peer = peer, .tag = tag});
}

Handle Group::recv(const Tensor& tensor, int64_t peer, int64_t tag) const {
  check_tensor("recv", "tensor", tensor);
  check_other("recv", peer, *this);
  return start(*this,
               {.verb = Verb::kRecv, .out = plain(tensor), .peer = peer, .tag = tag});
}

Handle Group::barrier() const {
  if (!backend_) return Handle();
  return start(*this, {.verb = Verb::kBarrier});
}

GroupMap make_groups(const std::vector<AxisRanks>& axes, int64_t rank,
                     const std::function<Group(const AxisRanks&)>& make) {
  GroupMap groups;
  for (const AxisRanks& axis : axes) {
    const auto& ranks = axis.ranks;
    TORCH_CHECK_VALUE(std::find(ranks.begin(), ranks.end(), rank) != ranks.end(),
                      "make_groups: axis '", axis.axis, "' lists ranks ",
                      at::IntArrayRef(ranks), ", which lack this rank, ", rank);
    const bool added =
        groups.emplace(axis.axis, ranks.size() == 1 ? Group(axis.axis) : make(axis))
            .second;
    TORCH_CHECK_VALUE(added, "make_groups: axis '", axis.axis, "' is listed twice");
  }
  return groups;
}

}  // namespace torchtitan::collectives
