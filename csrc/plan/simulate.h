// The time a program takes on a machine described by a few rates.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan {

// A mesh axis as a ring: a collective of n ranks sends (n - 1) / n of its bytes (twice
// that for all_reduce) at this rate, after this latency.
struct Link {
  double bytes_per_second;
  double latency_seconds;
};

struct CostModel {
  double flops_per_second;            // of compute actions
  double memory_bytes_per_second;     // of the optimizer
  std::map<std::string, Link> links;  // by mesh axis; "host": between device and host
};

struct Span {
  double begin;
  double end;
};

struct Simulation {
  double seconds;          // of the whole program
  double compute_seconds;  // of forwards, recomputes, backwards and the optimizer
  double exposed_seconds;  // that compute waited for communication
  // By action. Of a start: the time of its transfer; of a Wait: the time waited.
  std::vector<Span> spans;
};

// Runs the actions in order on one compute queue and one queue per axis. A start enters
// its axis' queue and takes no compute time; a Wait lasts until the transfer has ended.
// What a segment exchanges in itself adds to its compute time and counts as such; its
// sends pass while it computes and add only what they take longer.
// Offload and Reload pass over "host" one after another; where host memory is the
// device's they take no time.
// CountTokens and ClipGradient send one number over "loss" and cost its latency (twice
// for ClipGradient: the loss, the norm). Reading and writing parameters, gradients and
// states is the optimizer's cost.
// Throws std::invalid_argument for a rate that is not positive or an axis that is used
// by more than one rank and has no link, naming it. A missing "loss" link costs
// nothing.
Simulation simulate(const Program& program, const StepShape& shape,
                    const CostModel& cost);

// The same of the ranks of a pipeline, each with its own program and shape. Messages
// pass over "pp", each pair of ranks and direction a channel (plan/message_clock.h).
// ClipGradient ends on all ranks together, after the last has come to it and once more
// the latency of "pp". SumCopies ends when all ranks with a group of that name have
// started it and each has sent its copy to the others.
// Throws also for programs in which ranks wait for each other for ever or send what
// nobody receives.
std::vector<Simulation> simulate(std::span<const Program> programs,
                                 std::span<const StepShape> shapes,
                                 const CostModel& cost);

}  // namespace torchtitan::plan
