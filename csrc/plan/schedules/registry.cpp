#include "plan/schedules/registry.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "base/errors.h"
#include "plan/schedules/dual_pipe_v.h"
#include "plan/schedules/gpipe.h"
#include "plan/schedules/interleaved.h"
#include "plan/schedules/looped_bfs.h"
#include "plan/schedules/one_f_one_b.h"
#include "plan/schedules/zbv.h"
#include "plan/schedules/zero_bubble.h"

namespace torchtitan::plan::schedules {
namespace {

int64_t all_microbatches(const PipelineSize& size) {
  return size.stages_per_rank * size.num_microbatches;
}

using Bubble = std::optional<double>;

// Of a pipeline whose ranks idle (p - 1) * `slots` times as long as a forward takes,
// and work three times as long for each microbatch and stage.
Bubble bubble(const PipelineSize& size, int64_t slots, int64_t least_microbatches) {
  if (size.num_microbatches < least_microbatches) return std::nullopt;
  const auto idle = static_cast<double>((size.num_ranks - 1) * slots);
  return idle / (3.0 * static_cast<double>(all_microbatches(size)) + idle);
}

using Size = const PipelineSize&;

constexpr std::array<ScheduleFacts, 7> kSchedules{{
    {.name = "1F1B",
     .multi_stage = false,
     .stages_per_rank = 1,
     .v_shaped = false,
     .splits_backward = false,
     .overlaps = false,
     .bounded_memory = true,
     .make = [](Size s) { return one_f_one_b(s.num_ranks, s.num_microbatches); },
     .live_bound =
         [](Size s, int64_t rank) {
           return std::min(s.num_microbatches, s.num_ranks - rank);
         },
     .bubble = [](Size s) { return bubble(s, 3, 1); }},
    {.name = "GPipe",
     .multi_stage = false,
     .stages_per_rank = 1,
     .v_shaped = false,
     .splits_backward = false,
     .overlaps = false,
     .bounded_memory = false,
     .make = [](Size s) { return gpipe(s.num_ranks, s.num_microbatches); },
     .live_bound = [](Size s, int64_t) { return all_microbatches(s); },
     .bubble = [](Size s) { return bubble(s, 3, 1); }},
    {.name = "Interleaved1F1B",
     .multi_stage = true,
     .stages_per_rank = 0,
     .v_shaped = false,
     .splits_backward = false,
     .overlaps = false,
     .bounded_memory = true,
     .make =
         [](Size s) {
           return interleaved_one_f_one_b(s.num_ranks, s.stages_per_rank,
                                          s.num_microbatches);
         },
     .live_bound =
         [](Size s, int64_t rank) {
           return std::min(all_microbatches(s),
                           interleaved_warmup(s.num_ranks, s.stages_per_rank,
                                              s.num_microbatches, rank) +
                               1);
         },
     .bubble = [](Size s) { return bubble(s, 3, s.num_ranks); }},
    {.name = "InterleavedZeroBubble",
     .multi_stage = true,
     .stages_per_rank = 0,
     .v_shaped = false,
     .splits_backward = true,
     .overlaps = false,
     .bounded_memory = true,
     .make =
         [](Size s) {
           return interleaved_zero_bubble(s.num_ranks, s.stages_per_rank,
                                          s.num_microbatches);
         },
     .live_bound =
         [](Size s, int64_t rank) {
           return std::min(all_microbatches(s),
                           zero_bubble_warmup(s.num_ranks, s.stages_per_rank,
                                              s.num_microbatches, rank) +
                               1 + rank);
         },
     .bubble = [](Size s) { return bubble(s, 1, s.num_ranks); }},
    {.name = "LoopedBFS",
     .multi_stage = true,
     .stages_per_rank = 0,
     .v_shaped = false,
     .splits_backward = false,
     .overlaps = false,
     .bounded_memory = false,
     .make =
         [](Size s) {
           return looped_bfs(s.num_ranks, s.stages_per_rank, s.num_microbatches);
         },
     .live_bound = [](Size s, int64_t) { return all_microbatches(s); },
     .bubble = [](Size s) { return bubble(s, 3, s.num_ranks); }},
    {.name = "ZBVZeroBubble",
     .multi_stage = true,
     .stages_per_rank = 2,
     .v_shaped = true,
     .splits_backward = true,
     .overlaps = false,
     .bounded_memory = true,
     .make = [](Size s) { return zbv_zero_bubble(s.num_ranks, s.num_microbatches); },
     .live_bound =
         [](Size s, int64_t) { return std::min(all_microbatches(s), 2 * s.num_ranks); },
     .bubble = [](Size s) { return bubble(s, 1, 2 * s.num_ranks - 1); }},
    {.name = "DualPipeV",
     .multi_stage = true,
     .stages_per_rank = 2,
     .v_shaped = true,
     .splits_backward = true,
     .overlaps = true,
     .bounded_memory = true,
     .make = [](Size s) { return dual_pipe_v(s.num_ranks, s.num_microbatches); },
     .live_bound =
         [](Size s, int64_t) {
           return std::min(all_microbatches(s), 2 * s.num_ranks + 1);
         },
     .bubble = [](Size s) { return bubble(s, 2, 2 * s.num_ranks); }},
}};

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(c));
  return result;
}

}  // namespace

std::span<const ScheduleFacts> all_schedules() { return kSchedules; }

const ScheduleFacts& find_schedule(std::string_view name) {
  std::string known;
  for (const ScheduleFacts& facts : kSchedules) {
    if (lower(facts.name) == lower(name)) return facts;
    known += (known.empty() ? "" : ", ") + std::string(facts.name);
  }
  throw std::invalid_argument(
      base::message("unknown pipeline schedule '", name, "', expected one of ", known));
}

void check_size(const ScheduleFacts& facts, const PipelineSize& size) {
  using base::check_value;
  check_value(size.num_ranks >= 1, facts.name, ": needs at least 1 rank, got ",
              size.num_ranks);
  check_value(size.num_microbatches >= 1, facts.name,
              ": needs at least 1 microbatch, got ", size.num_microbatches);
  check_value(size.stages_per_rank >= 1, facts.name,
              ": needs at least 1 stage per rank, got ", size.stages_per_rank);
  check_value(
      facts.stages_per_rank == 0 || facts.stages_per_rank == size.stages_per_rank,
      facts.name, ": takes exactly ", facts.stages_per_rank, " stage",
      facts.stages_per_rank == 1 ? "" : "s", " per rank, that is ",
      facts.stages_per_rank * size.num_ranks, " on ", size.num_ranks, " ranks, got ",
      size.stages_per_rank, " per rank");
}

Schedule make_schedule(std::string_view name, int64_t num_ranks,
                       int64_t stages_per_rank, int64_t num_microbatches) {
  const ScheduleFacts& facts = find_schedule(name);
  const PipelineSize size{num_ranks, stages_per_rank, num_microbatches};
  check_size(facts, size);
  return facts.make(size);
}

}  // namespace torchtitan::plan::schedules
