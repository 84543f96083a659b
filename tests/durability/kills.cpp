#include "durability/kills.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <map>
#include <random>
#include <set>

#include "base/errors.h"
#include "base/json.h"
#include "durability/checkpoint.h"
#include "durability/job.h"
#include "storage/checkpoint_names.h"
#include "storage/folder.h"

namespace torchtitan::durability {
namespace {

namespace fs = std::filesystem;
using namespace storage;
using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr int64_t kJobsPerFolder = 20;
constexpr int64_t kSavesPerJob = 3;
constexpr auto kLongestEnd = std::chrono::seconds(20);

struct FaultRow {
  const char* point;
  int64_t most;  // times in a job of the first rank; others write and read only
  bool of_first_rank_only;
};
constexpr std::array<FaultRow, 17> kFaults{{{"mkdir", 4, true},
                                            {"create", 9, false},
                                            {"write", 18, false},
                                            {"sync", 15, false},
                                            {"open", 20, false},
                                            {"read", 40, false},
                                            {"rename", 8, true},
                                            {"remove", 20, true},
                                            {"before manifest", 3, true},
                                            {"manifest written", 3, true},
                                            {"before rename", 3, true},
                                            {"renamed", 3, true},
                                            {"exchanged", 1, true},
                                            {"replaced", 1, true},
                                            {"durable", 3, true},
                                            {"purge renamed", 3, true},
                                            {"purge deleted", 3, true}}};

struct Counts {
  int64_t jobs = 0, killed_jobs = 0, killed_while_starting = 0,
          killed_before_first_save = 0, killed_later = 0, acknowledged = 0,
          failed_saves = 0, checkpoints_compared = 0;
  int64_t lost = 0, torn = 0, wrong = 0, left_over = 0, orphans = 0;
};

// Which process is killed when, beside the fault of the plan.
struct Kill {
  enum Whom { kNobody, kFirst, kAnother, kAll };
  Whom whom;
  int64_t rank;  // of kAnother
  microseconds after;
};

int64_t draw(std::mt19937_64& random, int64_t count) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(count));
}

std::string draw_fault(std::mt19937_64& random, int64_t rank, const char* kind) {
  while (true) {
    const FaultRow& row = kFaults[static_cast<size_t>(draw(random, kFaults.size()))];
    if (row.of_first_rank_only && rank != 0) continue;
    return base::message(row.point, ':', kind, ':', 1 + draw(random, row.most));
  }
}

class Trials {
 public:
  Trials(std::string folder, uint64_t seed) : root_(std::move(folder)), random_(seed) {}

  void run_until(int64_t num_kills) {
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // what outlives its job becomes our child
    fs::create_directories(root_);
    while (counts.killed_jobs < num_kills) {
      if (counts.jobs % kJobsPerFolder == 0) begin_folder();
      run_one();
      if (counts.jobs % kJobsPerFolder == 0) end_folder();
    }
    end_folder();
    fs::remove_all(root_);
  }

  Counts counts;

 private:
  void begin_folder() {
    folder_ = root_ + "/" + std::to_string(counts.jobs);
    acknowledged_ = 0;
    run_job_with({.whom = Kill::kNobody, .rank = 0, .after = {}}, 0, "", false);
  }

  // A job that nobody disturbs leaves nothing but checkpoints, no more than it may.
  void end_folder() {
    run_job_with({.whom = Kill::kNobody, .rank = 0, .after = {}}, 0, "", false);
    std::map<std::string, const Manifest*> by_id;
    const FolderListing listing = list_checkpoints(folder_);
    for (const auto& found : listing.checkpoints) {
      if (found.manifest) by_id.emplace(found.manifest->id, &*found.manifest);
    }
    int64_t length = 0;
    const Manifest* at = nullptr;  // the newest, if nothing is wrong with it
    if (!listing.checkpoints.empty() && listing.checkpoints[0].manifest) {
      at = &*listing.checkpoints[0].manifest;
    }
    counts.torn += at == nullptr;
    for (; at; ++length) {
      const auto parent = by_id.find(at->parent);
      at = parent == by_id.end() ? nullptr : parent->second;
    }
    counts.left_over += length > kKeepLatest;
    for (const std::string& name : names_in(folder_)) {
      counts.left_over += !step_of(name) && !is_marked(name, kAsideMark);
    }
    fs::remove_all(folder_);
  }

  void run_one() {
    const int64_t choice = draw(random_, 20);
    const int64_t rank = draw(random_, kNumRanks);
    Kill kill{.whom = Kill::kNobody, .rank = rank, .after = {}};
    std::string fault;
    const microseconds moment(draw(random_, longest_.count()));
    if (choice < 9) {  // by time
      constexpr std::array<Kill::Whom, 3> kWhom{Kill::kFirst, Kill::kAnother,
                                                Kill::kAll};
      kill.whom = kWhom[static_cast<size_t>(draw(random_, 3))];
      kill.rank = 1 + draw(random_, kNumRanks - 1);
      kill.after = moment;
    } else if (choice < 17) {
      fault = draw_fault(random_, rank, "kill");
    } else if (choice < 18) {  // one hangs, and the launcher ends the job
      fault = draw_fault(random_, rank, "stall");
      kill.whom = Kill::kAll;
      kill.after = longest_;
    } else {
      fault = draw_fault(random_, rank, choice == 18 ? "EIO" : "ENOSPC");
    }
    ++counts.jobs;
    run_job_with(kill, rank, fault, draw(random_, 8) == 0);
    check_folder();
  }

  void run_job_with(const Kill& kill, int64_t fault_rank, const std::string& fault,
                    bool goes_back) {
    const JobPlan plan{.folder = folder_,
                       .seed = random_(),
                       .num_saves = kSavesPerJob,
                       .goes_back = goes_back,
                       .fault_rank = fault_rank,
                       .fault = fault};
    int ends[2];
    base::check_value(::pipe(ends) == 0, "no pipe");
    const Clock::time_point begin = Clock::now();
    const pid_t first = ::fork();
    base::check_value(first >= 0, "no process");
    if (first == 0) {
      ::setpgid(0, 0);
      ::close(ends[0]);
      run_job(plan, ends[1]);
    }
    ::setpgid(first, first);
    ::close(ends[1]);
    ranks_ = {first};
    phase_ = Event::kStarted;
    follow_events(ends[0], kill, begin);
    ::close(ends[0]);
    const bool was_killed = reap(first);
    counts.killed_jobs += was_killed;
    if (was_killed) {
      counts.killed_while_starting += phase_ == Event::kStarted;
      counts.killed_before_first_save += phase_ == Event::kLoaded;
      counts.killed_later += phase_ == Event::kAcknowledged;
    } else if (kill.whom == Kill::kNobody && fault.empty()) {
      longest_ = std::max(
          longest_, std::chrono::duration_cast<microseconds>(Clock::now() - begin));
    }
  }

  // Until the first rank, who alone writes them, has ended.
  void follow_events(int events, const Kill& kill, Clock::time_point begin) {
    bool is_due = kill.whom != Kill::kNobody;
    while (true) {
      pollfd waiting{.fd = events, .events = POLLIN, .revents = 0};
      timespec limit{};
      if (is_due) {
        const auto left =
            std::max(begin + kill.after - Clock::now(), Clock::duration(0));
        limit.tv_sec = std::chrono::duration_cast<std::chrono::seconds>(left).count();
        limit.tv_nsec = left.count() % 1'000'000'000;
      }
      if (::ppoll(&waiting, 1, is_due ? &limit : nullptr, nullptr) == 0) {
        is_due = !carry_out(kill);
        continue;
      }
      Event event{};
      if (::read(events, &event, sizeof(event)) != sizeof(event)) return;
      take(event);
    }
  }

  // False: the rank to be killed is not there yet.
  bool carry_out(const Kill& kill) {
    if (kill.whom == Kill::kAll) return ::kill(-ranks_[0], SIGKILL) == 0;
    const size_t rank = kill.whom == Kill::kFirst ? 0 : static_cast<size_t>(kill.rank);
    if (rank >= ranks_.size()) return false;
    ::kill(ranks_[rank], SIGKILL);
    return true;
  }

  void take(const Event& event) {
    switch (event.kind) {
      case Event::kStarted: ranks_.push_back(static_cast<pid_t>(event.pid)); return;
      case Event::kWrong: ++counts.wrong; return;
      case Event::kFailedSave: ++counts.failed_saves; return;
      case Event::kLoaded: break;
      case Event::kAcknowledged:
        ++counts.acknowledged;
        acknowledged_ = event.number;
        break;
    }
    phase_ = event.kind;
  }

  // Waits for all processes of the job; returns whether one was killed.
  bool reap(pid_t group) {
    bool was_killed = false;
    const Clock::time_point limit = Clock::now() + kLongestEnd;
    while (true) {
      int status = 0;
      const pid_t pid = ::waitpid(-1, &status, WNOHANG);
      if (pid < 0) return was_killed;
      if (pid > 0) {
        was_killed = was_killed || WIFSIGNALED(status);
        base::check_value(!WIFSIGNALED(status) || WTERMSIG(status) == SIGKILL,
                          "a rank ended by signal ", WTERMSIG(status));
      } else if (Clock::now() > limit) {
        ++counts.orphans;
        ::kill(-group, SIGKILL);
        ::waitpid(-1, &status, 0);
      } else {
        ::usleep(200);
      }
    }
  }

  void check_folder() {
    int64_t newest = 0;
    for (const auto& found : list_checkpoints(folder_).checkpoints) {
      try {
        base::check_value(found.manifest.has_value(), found.problem);
        newest = std::max(newest, found.manifest->sequence);
        for (int64_t rank = 0; rank < kNumRanks; ++rank) {
          counts.wrong += !load_part(found.path, *found.manifest, rank);
        }
        ++counts.checkpoints_compared;
      } catch (const std::exception& error) {
        std::cerr << "torn: " << error.what() << '\n';
        ++counts.torn;
      }
    }
    counts.lost += newest < acknowledged_;
    // Every start ends what the last one left, so it never adds up.
    int64_t num_staging = 0, num_trash = 0;
    for (const std::string& name : names_in(folder_)) {
      num_staging += is_marked(name, kStagingMark);
      num_trash += name.starts_with(kTrashPrefix);
    }
    counts.left_over += num_staging > 1 || num_trash > 1;
  }

  std::string root_, folder_;
  std::mt19937_64 random_;
  std::vector<pid_t> ranks_;
  int64_t acknowledged_ = 0;  // sequence number of the last one in the folder
  Event::Kind phase_ = Event::kStarted;
  microseconds longest_{1000};  // of an undisturbed job
};

}  // namespace

bool run_kills(const std::string& folder, int64_t num_kills, uint64_t seed) {
  const Clock::time_point begin = Clock::now();
  Trials trials(folder, seed);
  trials.run_until(num_kills);
  const Counts& c = trials.counts;
  const bool passed = c.lost + c.torn + c.wrong + c.left_over + c.orphans == 0;
  const auto seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  std::cout << base::Json(
                   base::Json::Object{
                       {"seed", static_cast<int64_t>(seed)},
                       {"kills", c.killed_jobs},
                       {"killed_while_starting_and_loading", c.killed_while_starting},
                       {"killed_in_first_save", c.killed_before_first_save},
                       {"killed_in_purge_or_later_save", c.killed_later},
                       {"jobs", c.jobs},
                       {"saves_acknowledged", c.acknowledged},
                       {"saves_failed_by_errors", c.failed_saves},
                       {"checkpoints_compared", c.checkpoints_compared},
                       {"acknowledged_lost", c.lost},
                       {"torn_accepted", c.torn},
                       {"wrong_numbers", c.wrong},
                       {"left_over", c.left_over},
                       {"orphans", c.orphans},
                       {"seconds", seconds}})
                   .dump()
            << std::endl;
  return passed;
}

}  // namespace torchtitan::durability
