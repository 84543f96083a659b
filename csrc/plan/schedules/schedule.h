// A pipeline schedule: what each rank does with its stages and in which order, before
// anything is sent (plan/passes/transfers.h) or divided into segments.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plan/verify.h"

namespace torchtitan::plan::schedules {

// F, B, I and W of the literature and of torch's CSV files.
enum class StageWork { kForward, kBackward, kBackwardInput, kBackwardWeight };

// A stage's work on a microbatch.
struct StageAction {
  StageWork work;
  int64_t stage;
  int64_t microbatch;
  // This forward and the backward after it run together, segment by segment in turn.
  bool overlaps_next = false;

  bool operator==(const StageAction&) const = default;
};

struct Schedule {
  std::vector<int64_t> rank_of_stage;
  int64_t num_microbatches;
  std::vector<std::vector<StageAction>> ranks;  // by rank, first to last

  int64_t num_stages() const { return static_cast<int64_t>(rank_of_stage.size()); }
  bool operator==(const Schedule&) const = default;
};

// "2F0": stage 2, forward, microbatch 0, as torch prints it.
std::string to_string(const StageAction& action);

// The first thing that keeps a schedule from being run.
struct ScheduleProblem {
  int64_t rank;
  int64_t index;  // of the action in its rank; the number of actions if one is missing
  std::string what;
};

// Nothing if every stage does all its work on every microbatch exactly once on its own
// rank (kTraining: F and either B or I and W; kForwardOnly: F), each in an order that
// its inputs allow, and the ranks never wait for each other in a circle.
std::optional<ScheduleProblem> find_problem(const Schedule& schedule, ProgramKind kind);

// Throws std::invalid_argument with the rank, index and text of find_problem's finding.
void check(const Schedule& schedule, ProgramKind kind);

}  // namespace torchtitan::plan::schedules
