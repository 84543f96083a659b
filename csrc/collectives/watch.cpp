#include "collectives/watch.h"

#include <c10/util/Exception.h>

#include <utility>

#include "collectives/group.h"

namespace torchtitan::collectives {

namespace {

void check_timeout(std::chrono::milliseconds timeout) {
  TORCH_CHECK_VALUE(timeout.count() > 0, "Watch: timeout must be positive, but is ",
                    timeout.count(), " ms");
}

}  // namespace

Watch::Scope::Scope(Watch& watch, std::string what) : watch_(watch) {
  const std::scoped_lock lock(watch_.mutex_);
  id_ = watch_.next_id_++;
  watch_.waiting_.emplace(id_, Waiting{std::move(what), Clock::now()});
}

Watch::Scope::~Scope() {
  const std::scoped_lock lock(watch_.mutex_);
  watch_.waiting_.erase(id_);
  watch_.last_wait_end_.store(Clock::now());
}

Watch::Watch(std::chrono::milliseconds timeout)
    : timeout_(timeout), last_wait_end_(Clock::now()) {
  check_timeout(timeout);
}

void Watch::set_timeout(std::chrono::milliseconds timeout) {
  check_timeout(timeout);
  timeout_.store(timeout);
}

bool Watch::expired(Clock::time_point start) const {
  const auto now = Clock::now();
  if (patient() && now < guarded_until_.load()) return false;
  return now - start > timeout();
}

std::optional<Watch::Waiting> Watch::waiting() const {
  const std::scoped_lock lock(mutex_);
  if (waiting_.empty()) return std::nullopt;
  return waiting_.begin()->second;
}

void Watch::abort(const std::string& cause) {
  // Who comes second returns once the first is done.
  std::call_once(abort_once_, [&] {
    std::unique_lock lock(mutex_);
    cause_ = cause;
    const auto witness = witness_;
    lock.unlock();
    if (witness) witness(cause);
    aborted_ = true;
  });
}

void Watch::on_abort(std::function<void(const std::string&)> witness) {
  const std::scoped_lock lock(mutex_);
  witness_ = std::move(witness);
}

void Watch::set_explain(std::function<std::string(const Failure&)> explain) {
  const std::scoped_lock lock(mutex_);
  explain_ = std::move(explain);
}

void Watch::fail(const Failure& failure) {
  std::function<std::string(const Failure&)> explain;
  {
    const std::scoped_lock lock(mutex_);
    explain = explain_;
  }
  // Not under the lock: the heartbeat reads this watch while it looks for the culprit.
  if (!aborted()) {
    abort(explain ? explain(failure) : failure.what + ": " + failure.error);
  }
  throw_cause();
}

void Watch::throw_cause() const {
  const std::scoped_lock lock(mutex_);
  throw CollectiveError(cause_);
}

void Watch::on_close(std::function<void()> closer) {
  const std::scoped_lock lock(mutex_);
  closers_.push_back(std::move(closer));
}

void Watch::close() {
  std::vector<std::function<void()>> closers;
  {
    const std::scoped_lock lock(mutex_);
    closers.swap(closers_);
  }
  for (const auto& closer : closers) closer();
}

}  // namespace torchtitan::collectives
