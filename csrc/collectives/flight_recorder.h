// The last collectives of a rank, written to a JSON file when the run ends badly.
//
// One object a file: "rank", "world_size", "run" (equal for all ranks of one start of
// the job), "host", "pid", "step", "cause", "written_unix_s", "started" (how many there
// were in all), "groups" (each "name", "ranks" and "started", the sequence of its next
// one) and "entries", the last `capacity` in the order of their start: "group" (index
// into "groups"), "sequence", "op", "reduce", "dtype", "numel", "bytes", "peer" (of
// send, recv and broadcast; a rank of the world), "tag", "step", "state", and
// "started_s", "waited_s", "completed_s" in seconds before the file was written. What
// an entry lacks is null.
//
// Sequences count from 0 what a group does: all its ranks give one collective the same
// number. A send and its recv are counted by sender, receiver and tag.
//
// States: "started"; "waiting", some thread is in wait(); "completed", wait() has
// returned (on CUDA: the stream waits, the device may still be at it); "failed".
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "collectives/backend.h"
#include "collectives/group.h"
#include "collectives/watch.h"

namespace torchtitan::collectives {

struct FlightOptions {
  int64_t rank;
  int64_t size;
  int64_t capacity;  // entries kept
  std::string run;
  std::string path;  // of the file; its folder is made when it is written
};

// Every method may be called from any thread.
class FlightRecorder {
 public:
  using Clock = std::chrono::steady_clock;

  // Throws c10::ValueError unless 0 <= rank < size and capacity > 0.
  explicit FlightRecorder(FlightOptions options);

  // Training step that later entries are noted with; -1 before the first.
  int64_t step() const { return step_.load(); }
  void set_step(int64_t step) { step_.store(step); }

  // `ranks` are those of the world, in the order of the group.
  int64_t add_group(const std::string& name, std::vector<int64_t> ranks);
  // Returns the number of the entry, for the calls below.
  int64_t start(int64_t group, const Operation& operation);
  void waiting(int64_t number);
  void ended(int64_t number, bool well);

  // The text of the file.
  std::string to_json(const std::string& cause) const;
  // Replaces the file. Throws std::runtime_error that names it.
  void write(const std::string& cause) const;

 private:
  enum class State : uint8_t { kStarted, kWaiting, kCompleted, kFailed };

  struct Entry {
    int64_t group;
    int64_t sequence;
    int64_t numel;  // -1: no tensor
    int64_t bytes;
    int64_t peer;
    int64_t tag;
    int64_t step;
    Clock::time_point started;
    Clock::time_point waited;
    Clock::time_point completed;
    Verb verb;
    ReduceOp op;
    at::ScalarType dtype;
    State state;
  };
  struct Members {
    std::string name;
    std::vector<int64_t> ranks;
    int64_t collectives = 0;
  };
  // Group, sender, receiver, tag.
  using Channel = std::tuple<int64_t, int64_t, int64_t, int64_t>;

  Entry* find(int64_t number);

  FlightOptions options_;
  std::atomic<int64_t> step_ = -1;
  mutable std::mutex mutex_;
  std::vector<Members> groups_;
  std::vector<Entry> entries_;  // entry n is at n % capacity
  int64_t started_ = 0;
  std::map<Channel, int64_t> pairs_;
};

// The same group, recorded. A group of size one communicates nothing.
Group traced(const Group& group, std::shared_ptr<FlightRecorder> recorder,
             std::vector<int64_t> ranks);

// The file is written before the abort of the watch is seen, unless that takes longer
// than five seconds. A file that cannot be written is told on stderr.
void write_on_abort(Watch& watch, const std::shared_ptr<FlightRecorder>& recorder);

}  // namespace torchtitan::collectives
