// The time that the ranks of a pipeline take together.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "plan/program.h"
#include "plan/simulate.h"

namespace torchtitan::plan {

// Of a stage on one microbatch.
struct StageCost {
  double forward_seconds;
  double backward_seconds;        // of Backward
  double backward_input_seconds;  // of the halves, where they run apart
  double backward_weight_seconds;
  double output_bytes = 0.0;  // what it sends on, and of the gradients it gets back
};

// A rank's share in a simulation.
struct RankUse {
  double compute_seconds;
  double first_begin;  // of its first work
  double last_end;     // of its last work
  int64_t peak_live;   // most activations between a Forward and the end of its backward

  // Idle share of the time between its first and last work.
  double idle_share() const;
};

struct PipelineSimulation {
  double seconds;  // until the last rank has ended
  // By rank and action. Of a start: the time of its message; of a Wait: the time
  // waited.
  std::vector<std::vector<Span>> spans;
  std::vector<RankUse> ranks;

  // Idle share of the time of all ranks.
  double bubble() const;
  // The same of one rank.
  double bubble(int64_t rank) const;
};

// Runs the programs of all ranks, each on one compute queue, joined by a channel for
// each pair of ranks and direction. A message passes when its send and its receive have
// started and the messages before it in its channel have passed; it takes
// output_bytes of the stage before the border at the link's rate, after its latency. No
// link: no time. A pair that runs together takes the time of both.
//   stages  by stage of the whole pipeline
// Throws std::invalid_argument for a negative time, a link whose rate is not positive,
// and for programs in which ranks wait for each other for ever or send what nobody
// receives. The programs must be
// what verify_pipeline accepts.
PipelineSimulation simulate_pipeline(std::span<const Program> programs,
                                     std::span<const StageCost> stages,
                                     const std::optional<Link>& link);

}  // namespace torchtitan::plan
