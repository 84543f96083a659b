// What ends a wait other than completion: a deadline and an abort. One Watch is shared
// by the c10d groups of a process, and by the heartbeat, which can say whom to blame.
//
// A patient watch has no deadline, for ranks that wait while another one works for as
// long as it takes, such as saving a checkpoint. It is so only while the heartbeat says
// that it would notice if that rank were lost.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace torchtitan::collectives {

// A collective that failed: "all_reduce of Float[7] of group 'dp'" and one line of why.
struct Failure {
  std::string what;
  std::string error;
  bool timed_out = false;
};

// Every method may be called from any thread.
class Watch {
 public:
  using Clock = std::chrono::steady_clock;

  // While a thread waits in a collective, for others to see.
  struct Waiting {
    std::string what;
    Clock::time_point since;
  };
  class Scope {
   public:
    Scope(Watch& watch, std::string what);
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope();

   private:
    Watch& watch_;
    int64_t id_;
  };

  // Throws c10::ValueError unless timeout is positive, as does set_timeout.
  explicit Watch(std::chrono::milliseconds timeout);

  // Of one wait. Waits under way follow a change.
  std::chrono::milliseconds timeout() const { return timeout_.load(); }
  void set_timeout(std::chrono::milliseconds timeout);

  bool patient() const { return patient_.load(); }
  void set_patient(bool patient) { patient_.store(patient); }
  // Until then a rank that is lost would be noticed, and the waits aborted.
  void set_guarded_until(Clock::time_point time) { guarded_until_.store(time); }
  // Whether a wait that began at `start` has lasted too long.
  bool expired(Clock::time_point start) const;

  // The training step this rank is in, for messages; -1 before the first.
  int64_t step() const { return step_.load(); }
  void set_step(int64_t step) { step_.store(step); }

  // The wait that began first, if any thread waits.
  std::optional<Waiting> waiting() const;
  // When the last wait ended, or the watch was made: since then this rank works alone.
  Clock::time_point last_wait_end() const { return last_wait_end_.load(); }

  // Ends all waits, present and future, with CollectiveError(cause). The first stays.
  void abort(const std::string& cause);
  // `witness` is called with the first cause before any wait ends; it must not throw.
  void on_abort(std::function<void(const std::string&)> witness);
  bool aborted() const { return aborted_.load(); }

  // Who turns a failure into the line to throw. It may take seconds.
  void set_explain(std::function<std::string(const Failure&)> explain);
  // Explains, aborts and throws the first cause as CollectiveError.
  [[noreturn]] void fail(const Failure& failure);
  [[noreturn]] void throw_cause() const;

  // `closer` is called once by close(), which groups use to drop process groups.
  void on_close(std::function<void()> closer);
  void close();

 private:
  std::atomic<std::chrono::milliseconds> timeout_;
  std::atomic<int64_t> step_ = -1;
  std::atomic<bool> aborted_ = false;
  std::atomic<bool> patient_ = false;
  std::atomic<Clock::time_point> guarded_until_ = Clock::time_point::min();
  std::atomic<Clock::time_point> last_wait_end_;
  mutable std::mutex mutex_;
  std::once_flag abort_once_;
  std::string cause_;
  std::function<void(const std::string&)> witness_;
  std::function<std::string(const Failure&)> explain_;
  std::map<int64_t, Waiting> waiting_;
  int64_t next_id_ = 0;
  std::vector<std::function<void()>> closers_;
};

}  // namespace torchtitan::collectives
