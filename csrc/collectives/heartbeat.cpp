#include "collectives/heartbeat.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <optional>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "collectives/beat.h"
#include "collectives/group.h"
#include "collectives/work_meter.h"

namespace torchtitan::collectives {

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Intervals after which a rank that beats no more is lost even if it may be busy.
constexpr int kLongSilence = 30;

// Published once by whoever finds out first why the run has to end.
const std::string kCauseKey = "cause";

std::string beat_key(int64_t rank) { return "beat/" + std::to_string(rank); }

std::vector<uint8_t> to_bytes(const std::string& text) {
  return {text.begin(), text.end()};
}

std::string to_text(const std::vector<uint8_t>& bytes) {
  return {bytes.begin(), bytes.end()};
}

}  // namespace

// Shared with the thread, which may outlive the Heartbeat inside a hanging store.
struct Heartbeat::State {
  c10::intrusive_ptr<c10d::Store>
      store;  // used by the thread only, after the first beat
  HeartbeatOptions options;
  std::shared_ptr<Watch> watch;
  int64_t number = 0;

  std::mutex mutex;
  std::condition_variable changed;
  bool stopping = false;
  bool leaving = false;
  bool stopped = false;
  bool store_lost = false;
  std::optional<Failure> question;   // from explain()
  std::optional<std::string> cause;  // to publish, from report()
  std::optional<std::string> answer;

  // Of the question under way.
  std::optional<Clock::time_point> asked;
  std::vector<Sighting> sightings;

  // What the thread knows of the rank that it follows.
  int64_t followed_number = -1;
  Clock::time_point followed_at{};
  bool suspects = false;
  int64_t followed_work = -1;
  std::optional<Clock::time_point> idle_since;
  bool warned = false;
  WorkMeter meter;  // of the thread

  // How long a beat must stand still before its rank counts as silent.
  milliseconds patience() const { return 2 * options.interval + 500ms; }
  // How long a question may take before the store itself is blamed.
  milliseconds limit() const { return patience() + 2 * options.interval + 1s; }

  void beat(bool left = false) {
    Beat own = own_beat(*watch);
    own.number = number++;
    own.work = meter.read();
    own.left = left;
    store->set(beat_key(options.rank), to_bytes(own.to_text()));
  }

  std::optional<std::string> read(const std::string& key) {
    if (!store->check({key})) return std::nullopt;
    return to_text(store->get(key));
  }

  std::string publish(const std::string& line) {
    return to_text(store->compareSet(kCauseKey, {}, to_bytes(line)));
  }

  // Reads all beats; true once the question can be answered from the sightings.
  bool look() {
    const auto now = Clock::now();
    const Beat own = own_beat(*watch);
    const bool first = !asked;
    if (first) asked = now;
    sightings.resize(options.size);
    bool lost = false;
    bool all_beat = true;
    for (int64_t rank = 0; rank < options.size; ++rank) {
      Sighting& sighting = sightings[rank];
      const auto text = read(beat_key(rank));
      std::optional<Beat> beat = text ? Beat::from_text(*text) : std::nullopt;
      const bool same = beat.has_value() == sighting.beat.has_value() &&
                        (!beat || beat->number == sighting.beat->number);
      if (first) sighting.silent = true;
      if (!first && !same) sighting.silent = false;
      sighting.rank = rank;
      sighting.beat = std::move(beat);
      sighting.ended =
          rank != options.rank && sighting.beat && has_ended(*sighting.beat, own);
      lost = lost || sighting.ended;
      all_beat = all_beat && !sighting.silent;
    }
    return lost || all_beat || now - *asked > patience();
  }

  std::optional<std::string> culprit(const Failure& failure) const {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const int64_t unix_ms = std::chrono::duration_cast<milliseconds>(now).count();
    return blame(sightings, failure, options.rank, unix_ms);
  }

  std::string conclude(const Failure& failure) {
    return publish(culprit(failure).value_or(failure.what + ": " + failure.error));
  }

  // Whether the rank that this one follows seems to be lost.
  bool misses_next() {
    const int64_t next = (options.rank + 1) % options.size;
    if (next == options.rank) return false;
    const auto text = read(beat_key(next));
    const std::optional<Beat> beat = text ? Beat::from_text(*text) : std::nullopt;
    if (beat && beat->left) {
      idle_since.reset();
      return false;
    }
    const auto now = Clock::now();
    const int64_t now_number = beat ? beat->number : -2;
    if (now_number != followed_number) {
      followed_number = now_number;
      followed_at = now;
    }
    if (beat) follow_work(*beat);
    return (beat && has_ended(*beat, own_beat(*watch))) ||
           now - followed_at > kLongSilence * options.interval;
  }

  void follow_work(const Beat& beat) {
    if (beat.waits_for.empty() && beat.work == followed_work && idle_since) return;
    followed_work = beat.work;
    idle_since = Clock::now();
    warned = false;
  }

  // Warns of the rank that this one follows, and returns the line once it is too late.
  std::optional<std::string> find_idle() {
    if (!idle_since) return std::nullopt;
    const auto idle =
        std::chrono::duration_cast<milliseconds>(Clock::now() - *idle_since);
    if (idle <= watch->timeout()) return std::nullopt;
    const int64_t next = (options.rank + 1) % options.size;
    const auto text = read(beat_key(next));
    const auto beat = text ? Beat::from_text(*text) : std::nullopt;
    if (!beat) return std::nullopt;
    const std::string line = idle_text({.rank = next, .beat = beat}, idle.count());
    if (idle > options.longest_idle) return line;
    if (!warned) std::cerr << line << "; the others wait for it" << std::endl;
    warned = true;
    return std::nullopt;
  }

  // While the watch is patient: the published line, once some rank is lost.
  std::optional<std::string> guard() {
    suspects = suspects || misses_next();
    if (!suspects) {
      const auto line = find_idle();
      return line ? std::optional(publish(*line)) : std::nullopt;
    }
    if (!look()) return std::nullopt;
    const auto waiting = watch->waiting();
    const auto line = culprit({waiting ? waiting->what : "", ""});
    forget();
    return line ? std::optional(publish(*line)) : std::nullopt;
  }

  // What was seen is of no use to a later question.
  void forget() {
    suspects = false;
    asked.reset();
    sightings.clear();
  }

  // One turn of the thread.
  void turn() {
    beat();
    std::optional<std::string> known = read(kCauseKey);
    std::unique_lock lock(mutex);
    const std::optional<Failure> failure = question;
    const std::optional<std::string> own_cause = cause;
    lock.unlock();
    if (!known && own_cause) known = publish(*own_cause);
    if (!known && failure && look()) known = conclude(*failure);
    if (!failure && !watch->patient()) {
      forget();
      idle_since.reset();
    }
    if (!known && !failure && watch->patient()) known = guard();
    if (!known) {
      watch->set_guarded_until(Clock::now() + kLongSilence * options.interval);
      return;
    }
    watch->abort(*known);
    lock.lock();
    answer = known;
    changed.notify_all();
  }

  void run() {
    try {
      std::unique_lock lock(mutex);
      while (!stopping) {
        lock.unlock();
        turn();
        lock.lock();
        const bool busy = question && !answer;
        const auto pause =
            busy ? std::min(options.interval / 4, milliseconds(50)) : options.interval;
        changed.wait_for(lock, std::max(pause, milliseconds(1)), [&] {
          return stopping || (!busy && question && !answer) || (cause && !answer);
        });
      }
      const bool left = leaving;
      lock.unlock();
      if (left) beat(/*left=*/true);
    } catch (const std::exception&) {
      const std::scoped_lock lock(mutex);
      store_lost = true;
    }
    const std::scoped_lock lock(mutex);
    stopped = true;
    changed.notify_all();
  }

  std::string store_text() const {
    return options.store_owner + " has died or stalled: its store does not answer";
  }

  // Waits for the thread's answer. Under `lock`.
  std::string await_answer(std::unique_lock<std::mutex>& lock, milliseconds time,
                           const std::string& otherwise) {
    changed.notify_all();
    changed.wait_for(lock, time, [this] { return answer || stopped; });
    return answer ? *answer : otherwise;
  }

  std::string explain(const Failure& failure) {
    std::unique_lock lock(mutex);
    question = failure;
    const std::string plain = failure.what + ": " + failure.error;
    if (stopped && !store_lost && !answer) return plain;
    const std::string& owner = options.store_owner;
    const bool own = owner == "rank " + std::to_string(options.rank);
    return await_answer(lock, limit(), own ? plain : store_text() + " (" + plain + ")");
  }
};

Heartbeat::Heartbeat(const c10::intrusive_ptr<c10d::Store>& store,
                     const HeartbeatOptions& options,
                     const std::shared_ptr<Watch>& watch)
    : state_(std::make_shared<State>()) {
  TORCH_CHECK_VALUE(store && watch, "Heartbeat: store and watch must not be null");
  TORCH_CHECK_VALUE(0 <= options.rank && options.rank < options.size,
                    "Heartbeat: expected 0 <= rank < size, but got rank ", options.rank,
                    " of ", options.size);
  TORCH_CHECK_VALUE(options.interval.count() > 0,
                    "Heartbeat: interval must be positive, but is ",
                    options.interval.count(), " ms");
  TORCH_CHECK_VALUE(options.longest_idle.count() > 0,
                    "Heartbeat: longest_idle must be positive, but is ",
                    options.longest_idle.count(), " ms");
  state_->store = store;
  state_->options = options;
  state_->watch = watch;
  try {
    state_->beat();
  } catch (const std::exception&) {
    throw CollectiveError(state_->store_text());
  }
  watch->set_explain([held = std::weak_ptr<State>(state_)](const Failure& failure) {
    const auto alive = held.lock();
    return alive ? alive->explain(failure) : failure.what + ": " + failure.error;
  });
  std::thread([state = state_] { state->run(); }).detach();
}

Heartbeat::~Heartbeat() { stop(); }

std::string Heartbeat::report(const std::string& cause) {
  std::unique_lock lock(state_->mutex);
  state_->cause = cause;
  return state_->await_answer(lock, 2 * state_->options.interval + 1s, cause);
}

void Heartbeat::stop() {
  std::unique_lock lock(state_->mutex);
  state_->stopping = true;
  state_->changed.notify_all();
  state_->changed.wait_for(lock, 1s, [this] { return state_->stopped; });
}

void Heartbeat::leave() {
  {
    const std::scoped_lock lock(state_->mutex);
    state_->leaving = true;
  }
  stop();
}

}  // namespace torchtitan::collectives
