#include "collectives/c10d_group.h"

#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <sstream>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "collectives/backend.h"
#include "collectives/local_execute.h"
#include "collectives/pair_work.h"

namespace torchtitan::collectives {

namespace {

using at::Tensor;
using ProcessGroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;
using C10dWorkPtr = c10::intrusive_ptr<c10d::Work>;
using c10::ivalue::Future;
using namespace std::chrono_literals;

// c10d's own timeout must never come first: it closes the connections of the group.
constexpr auto kC10dMargin = 60s;
constexpr auto kC10dPatience = std::chrono::hours(24 * 365);

// torch 2.13 renamed these; both names must compile, so they depend on a parameter.
template <class PG>
C10dWorkPtr start_all_gather(PG& group, Tensor& out, Tensor& in,
                             const c10d::AllgatherOptions& options) {
  if constexpr (requires { group.all_gather_single(out, in, options); }) {
    return group.all_gather_single(out, in, options);
  } else {
    return group._allgather_base(out, in, options);
  }
}

template <class PG>
C10dWorkPtr start_reduce_scatter(PG& group, Tensor& out, Tensor& in,
                                 const c10d::ReduceScatterOptions& options) {
  if constexpr (requires { group.reduce_scatter_single(out, in, options); }) {
    return group.reduce_scatter_single(out, in, options);
  } else {
    return group._reduce_scatter_base(out, in, options);
  }
}

template <class PG>
C10dWorkPtr start_all_to_all(PG& group, Tensor& out, Tensor& in,
                             std::vector<int64_t>& out_splits,
                             std::vector<int64_t>& in_splits,
                             const c10d::AllToAllOptions& options) {
  if constexpr (requires {
                  group.all_to_all_single(out, in, out_splits, in_splits, options);
                }) {
    return group.all_to_all_single(out, in, out_splits, in_splits, options);
  } else {
    return group.alltoall_base(out, in, out_splits, in_splits, options);
  }
}

c10d::ReduceOp c10d_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum: return c10d::ReduceOp::SUM;
    case ReduceOp::kMax: return c10d::ReduceOp::MAX;
    case ReduceOp::kMin: return c10d::ReduceOp::MIN;
  }
  TORCH_INTERNAL_ASSERT(false);
}

// Moving bytes asks nothing of a dtype, but Gloo knows only some.
Tensor as_bytes(const Tensor& tensor) {
  if (!tensor.is_cpu()) return tensor;
  return tensor.unsqueeze(-1).view(at::kByte);
}

std::string first_line(std::string text) { return text.substr(0, text.find('\n')); }

// Calls `action`; what it throws becomes the watch's one-line error.
template <class Action>
auto guarded(Watch& watch, const std::string& what, const Action& action) {
  try {
    return action();
  } catch (const CollectiveError&) {
    throw;
  } catch (const c10::Error& error) {
    watch.fail({what, first_line(error.what_without_backtrace())});
  } catch (const std::exception& error) {
    watch.fail({what, first_line(error.what())});
  }
}

// Tells one thread that a work has completed, well or not.
class Completion {
 public:
  static std::shared_ptr<Completion> of(c10d::Work& work) {
    auto completion = std::make_shared<Completion>();
    work.getFuture()->addCallback([completion](Future&) { completion->tell(); });
    return completion;
  }

  // False where it has not within `longest`.
  bool wait_for(std::chrono::milliseconds longest) {
    std::unique_lock lock(mutex_);
    return told_.wait_for(lock, longest, [this] { return done_; });
  }

 private:
  void tell() {
    const std::lock_guard lock(mutex_);
    done_ = true;
    told_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable told_;
  bool done_ = false;
};

class C10dWork : public Work {
 public:
  // `received` [n, k] is what a reduce_scatter over Gloo still has to add up.
  C10dWork(C10dWorkPtr work, Operation operation, Tensor received,
           std::shared_ptr<Watch> watch, std::string what)
      : work_(std::move(work)), operation_(std::move(operation)),
        received_(std::move(received)), watch_(std::move(watch)),
        what_(std::move(what)) {}

  bool completed() override {
    return done_ || watch_->aborted() || work_->isCompleted();
  }

  void wait() override {
    if (done_) return;
    const Watch::Scope scope(*watch_, what_);
    const Tensor& tensor = operation_.out.defined() ? operation_.out : operation_.in;
    guarded(*watch_, what_, [&] {
      if (!tensor.defined() || tensor.is_cpu()) wait_or_fail();
      // Now it does not block: it throws the operation's error or orders streams.
      return work_->wait();
    });
    if (received_.defined()) {
      const auto pieces = received_.unbind(0);
      sum_in_order(operation_.out, pieces);
      received_ = Tensor();
    }
    done_ = true;
    // A finished handle may live long after its tensors.
    operation_ = Operation();
    work_.reset();
  }

 private:
  // What another thread learns of a lost rank ends the wait soon.
  void wait_or_fail() const {
    const auto start = Watch::Clock::now();
    const auto lost = [watch = watch_, start] {
      return watch->aborted() || watch->expired(start);
    };
    auto* pair = dynamic_cast<PairWork*>(work_.get());
    const bool is_complete = pair != nullptr && !pair->getFuture()
                                 ? pair->wait_unless(lost)
                                 : wait_for_future(*work_, lost);
    if (is_complete) return;
    if (watch_->aborted()) watch_->throw_cause();
    const std::chrono::duration<double> seconds = watch_->timeout();
    std::ostringstream error;
    error << "not complete after " << seconds.count() << " s";
    watch_->fail({what_, error.str(), true});
  }

  static bool wait_for_future(c10d::Work& work, const std::function<bool()>& lost) {
    if (work.isCompleted()) return true;
    const auto completion = Completion::of(work);
    while (!completion->wait_for(20ms)) {
      if (lost()) return false;
    }
    return true;
  }

  C10dWorkPtr work_;
  Operation operation_;  // keeps the tensors alive
  Tensor received_;
  std::shared_ptr<Watch> watch_;
  std::string what_;
  bool done_ = false;
};

class C10dBackend : public Backend {
 public:
  C10dBackend(ProcessGroupPtr group, const std::string& name,
              std::shared_ptr<Watch> watch)
      : rank_(group->getRank()), size_(group->getSize()), name_(name),
        group_(std::move(group)), watch_(std::move(watch)) {}

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return size_; }
  ~C10dBackend() override { close(); }

  // Destroying a group waits for its operations, those too that will never end: after a
  // failure it is left to the end of the process.
  void close() {
    if (watch_->aborted()) {
      static_cast<void>(group_.release());
    } else {
      group_.reset();
    }
  }

  std::shared_ptr<Work> start(Operation operation) override {
    const std::string what = describe(operation) + " of group '" + name_ + "'";
    if (watch_->aborted()) watch_->throw_cause();
    if (!group_) throw CollectiveError(what + ": the process group has been closed");
    if (payload_bytes(operation) == 0 && operation.verb != Verb::kAllToAll &&
        operation.verb != Verb::kBarrier) {
      return nullptr;  // nothing to move, on any rank
    }
    Tensor received;
    C10dWorkPtr work =
        guarded(*watch_, what, [&] { return start_c10d(operation, received); });
    return std::make_shared<C10dWork>(std::move(work), std::move(operation),
                                      std::move(received), watch_, what);
  }

 private:
  C10dWorkPtr start_c10d(Operation& operation, Tensor& received) {
    const std::chrono::milliseconds timeout =
        watch_->patient() ? kC10dPatience : watch_->timeout() + kC10dMargin;
    const int peer = static_cast<int>(operation.peer);
    const int tag = static_cast<int>(operation.tag);
    switch (operation.verb) {
      case Verb::kAllReduce: {
        std::vector<Tensor> tensors{operation.out};
        c10d::AllreduceOptions options;
        options.reduceOp = c10d_op(operation.op);
        options.timeout = timeout;
        return group_->allreduce(tensors, options);
      }
      case Verb::kAllGather: {
        Tensor out = as_bytes(operation.out).view(-1);
        Tensor in = as_bytes(operation.in).view(-1);
        return start_all_gather(*group_, out, in, {.timeout = timeout});
      }
      case Verb::kReduceScatter:
        return start_reduce_scatter_sum(operation, received, timeout);
      case Verb::kAllToAll: {
        Tensor out = as_bytes(operation.out);
        Tensor in = as_bytes(operation.in);
        return start_all_to_all(*group_, out, in, operation.out_splits,
                                operation.in_splits, {.timeout = timeout});
      }
      case Verb::kBroadcast: {
        std::vector<Tensor> tensors{as_bytes(operation.out)};
        return group_->broadcast(tensors, {.rootRank = peer, .timeout = timeout});
      }
      case Verb::kSend: {
        std::vector<Tensor> tensors{as_bytes(operation.in)};
        return pair_work(group_->send(tensors, peer, tag), tensors.front(), timeout);
      }
      case Verb::kRecv: {
        std::vector<Tensor> tensors{as_bytes(operation.out)};
        return pair_work(group_->recv(tensors, peer, tag), tensors.front(), timeout);
      }
      case Verb::kBarrier: {
        c10d::BarrierOptions options;
        options.timeout = timeout;
        return group_->barrier(options);
      }
    }
    TORCH_INTERNAL_ASSERT(false);
  }

  C10dWorkPtr pair_work(C10dWorkPtr work, const Tensor& tensor,
                        std::chrono::milliseconds timeout) {
    if (!tensor.is_cpu()) return work;
    if (!pair_guard_) pair_guard_ = std::make_shared<PairGuard>();
    return c10::make_intrusive<PairWork>(std::move(work), timeout, pair_guard_);
  }

  // Gloo's own is one all_reduce of each piece. Here every byte travels once, and the
  // pieces are added in rank order by the first wait().
  C10dWorkPtr start_reduce_scatter_sum(Operation& operation, Tensor& received,
                                       std::chrono::milliseconds timeout) {
    Tensor in = operation.in.view(-1);
    if (!in.is_cpu()) {
      Tensor out = operation.out.view(-1);
      c10d::ReduceScatterOptions options;
      options.timeout = timeout;
      return start_reduce_scatter(*group_, out, in, options);
    }
    received = at::empty({size_, operation.out.numel()}, in.options());
    Tensor out = received.view(-1);
    std::vector<int64_t> none;  // equal pieces
    return start_all_to_all(*group_, out, in, none, none, {.timeout = timeout});
  }

  int64_t rank_;
  int64_t size_;
  std::string name_;
  ProcessGroupPtr group_;
  std::shared_ptr<Watch> watch_;
  std::shared_ptr<PairGuard> pair_guard_;  // from the first message on
};

}  // namespace

Group c10d_group(const c10::intrusive_ptr<c10d::ProcessGroup>& process_group,
                 std::string name, const std::shared_ptr<Watch>& watch) {
  TORCH_CHECK_VALUE(process_group, "c10d_group: process_group is null");
  TORCH_CHECK_VALUE(watch != nullptr, "c10d_group: watch is null");
  if (process_group->getSize() == 1) return Group(std::move(name));
  auto backend = std::make_shared<C10dBackend>(process_group, name, watch);
  watch->on_close([held = std::weak_ptr<C10dBackend>(backend)] {
    if (const auto alive = held.lock()) alive->close();
  });
  return Group(std::move(name), std::move(backend));
}

}  // namespace torchtitan::collectives
