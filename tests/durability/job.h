// A job of four processes that loads the newest checkpoint of a folder, saves some more
// and deletes old ones, as a run does; any of them may be killed at any moment.
#pragma once

#include <cstdint>
#include <string>

namespace torchtitan::durability {

inline constexpr int64_t kKeepLatest = 2;

struct JobPlan {
  std::string folder;
  uint64_t seed;       // of the ids; another one for every job of a folder
  int64_t num_saves;   // that are tried
  bool goes_back;      // loads the newest but one
  int64_t fault_rank;  // where `fault` is set
  std::string fault;   // for set_fault(); empty: none
};

// What the first rank tells, each in one write().
struct Event {
  enum Kind : int64_t {
    kStarted,       // process `pid` is rank `number`
    kLoaded,        // the checkpoint with this sequence number; 0: there was none
    kAcknowledged,  // the save with this sequence number
    kFailedSave,    // all ranks go on, the older checkpoints stay
    kWrong,         // a checkpoint that nothing is wrong with has other numbers
  };
  Kind kind;
  int64_t number;
  int64_t pid;
};

// The first rank; starts the others. Ends the process.
[[noreturn]] void run_job(const JobPlan& plan, int events);

}  // namespace torchtitan::durability
