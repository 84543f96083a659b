// All schedules by name, with what one has to know before choosing one.
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

struct PipelineSize {
  int64_t num_ranks;
  int64_t stages_per_rank;
  int64_t num_microbatches;
};

struct ScheduleFacts {
  std::string_view name;    // torch's spelling
  bool multi_stage;         // made for several stages per rank
  int64_t stages_per_rank;  // the only number it takes; 0: any from 1 on
  bool v_shaped;            // rank r has stages r and 2 p - 1 - r, else r + i p
  bool splits_backward;     // has actions I and W
  bool overlaps;            // has pairs of forward and backward that run together
  // Live activations do not grow with the number of microbatches: rounds of gradient
  // accumulation may be merged into one longer schedule.
  bool bounded_memory;
  Schedule (*make)(const PipelineSize& size);
  // Most pairs of stage and microbatch on a rank whose Forward has run and whose
  // Backward or BackwardWeight has not.
  int64_t (*live_bound)(const PipelineSize& size, int64_t rank);
  // The published share of idle time of all ranks in a step, where forward and both
  // halves of backward take equally long and messages take no time; nothing for fewer
  // microbatches than fill the pipeline. ZBVZeroBubble idles only before a rank's first
  // and after its last work.
  std::optional<double> (*bubble)(const PipelineSize& size);
};

// Every schedule takes every number of microbatches from 1 on.
std::span<const ScheduleFacts> all_schedules();

// By name, in any case. Throws std::invalid_argument with the known names.
const ScheduleFacts& find_schedule(std::string_view name);

// Throws std::invalid_argument with the numbers and what would do, for a size that the
// schedule does not take.
void check_size(const ScheduleFacts& facts, const PipelineSize& size);

// find_schedule, check_size, make.
Schedule make_schedule(std::string_view name, int64_t num_ranks,
                       int64_t stages_per_rank, int64_t num_microbatches);

}  // namespace torchtitan::plan::schedules
