#include "collectives/pair_work.h"

#include <exception>
#include <utility>

namespace torchtitan::collectives {

using c10::ivalue::Future;
using namespace std::chrono_literals;

PairGuard::PairGuard() : thread_([this] { run(); }) {}

PairGuard::~PairGuard() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  thread_.join();
}

void PairGuard::run() {
  std::unique_lock lock(mutex_);
  while (!stop_.wait_for(lock, 20ms, [this] { return stopping_; })) {
    for (Scope* scope : scopes_) {
      if (scope->ended_ || !scope->lost_()) continue;
      scope->ended_ = true;
      scope->work_.abort();
    }
  }
}

PairGuard::Scope::Scope(PairGuard& guard, c10d::Work& work, std::function<bool()> lost)
    : guard_(guard), work_(work), lost_(std::move(lost)) {
  const std::scoped_lock lock(guard_.mutex_);
  place_ = guard_.scopes_.insert(guard_.scopes_.end(), this);
}

PairGuard::Scope::~Scope() {
  const std::scoped_lock lock(guard_.mutex_);
  guard_.scopes_.erase(place_);
}

bool PairGuard::Scope::ended() const {
  const std::scoped_lock lock(guard_.mutex_);
  return ended_;
}

PairWork::PairWork(c10::intrusive_ptr<c10d::Work> work,
                   std::chrono::milliseconds timeout, std::shared_ptr<PairGuard> guard)
    : work_(std::move(work)), timeout_(timeout), guard_(std::move(guard)) {}

PairWork::~PairWork() {
  // Gloo may still read or write the memory of what nobody waited for.
  if (work_) static_cast<void>(work_.release());
}

bool PairWork::wait_unless(std::function<bool()> lost) {
  bool ended = false;
  {
    PairGuard::Scope scope(*guard_, *work_, std::move(lost));
    work_->wait(timeout_);
    ended = scope.ended();  // what came at the last moment counts as lost, too
  }
  if (!ended) work_.reset();
  return !ended;
}

bool PairWork::isCompleted() {
  if (!work_ && !future_) return true;
  if (!future_) {
    future_ = c10::make_intrusive<Future>(c10::NoneType::get());
    std::thread([future = future_, work = std::move(work_), timeout = timeout_] {
      try {
        work->wait(timeout);
        future->markCompleted();
      } catch (...) {
        future->setError(std::current_exception());
      }
    }).detach();
  }
  return future_->completed();
}

bool PairWork::wait(std::chrono::milliseconds) {
  TORCH_INTERNAL_ASSERT(isCompleted());
  if (future_ && future_->hasError()) std::rethrow_exception(future_->exception_ptr());
  return true;
}

}  // namespace torchtitan::collectives
