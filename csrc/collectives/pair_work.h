// Gloo's send and recv, which complete in a call that blocks. What ends such a call
// before its message is there is an abort of the work, from another thread: a time-out
// would close all connections of the group.
#pragma once

#include <ATen/core/ivalue.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/Work.hpp>

namespace torchtitan::collectives {

// A thread that ends waits for which there is no hope. One for the pairs of a group.
class PairGuard {
 public:
  PairGuard();
  PairGuard(const PairGuard&) = delete;
  PairGuard& operator=(const PairGuard&) = delete;
  ~PairGuard();

  // While a thread waits for `work`. What is `lost` is asked every 20 ms.
  class Scope {
   public:
    Scope(PairGuard& guard, c10d::Work& work, std::function<bool()> lost);
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope();

    bool ended() const;  // by the guard

   private:
    friend class PairGuard;
    PairGuard& guard_;
    c10d::Work& work_;
    std::function<bool()> lost_;
    bool ended_ = false;
    std::list<Scope*>::iterator place_;
  };

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::list<Scope*> scopes_;
  std::thread thread_;  // last: it uses all others
};

// One message. Of one thread at a time.
class PairWork final : public c10d::Work {
 public:
  // `timeout` must never pass, see above.
  PairWork(c10::intrusive_ptr<c10d::Work> work, std::chrono::milliseconds timeout,
           std::shared_ptr<PairGuard> guard);
  ~PairWork() override;

  // Blocks in Gloo itself, so that no other thread stands between the message and who
  // waits for it. False if it is lost. Throws what Gloo throws.
  bool wait_unless(std::function<bool()> lost);

  // From the first question on a thread of its own waits for the answer.
  bool isCompleted() override;
  // Null before that.
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  // Of what is complete: throws its error.
  bool wait(std::chrono::milliseconds) override;

 private:
  c10::intrusive_ptr<c10d::Work> work_;  // null once it is complete
  std::chrono::milliseconds timeout_;
  std::shared_ptr<PairGuard> guard_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

}  // namespace torchtitan::collectives
