// A pipeline schedule: what each rank does with its stages and in which order, before
// anything is sent (plan/passes/transfers.h) or divided into segments.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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

}  // namespace torchtitan::plan::schedules
