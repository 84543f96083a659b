// What a program sends: calls and bytes of every collective, exactly.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "plan/program.h"
#include "plan/step_shape.h"

namespace torchtitan::plan {

struct Traffic {
  int64_t calls = 0;
  // Of the larger side of each call: the result of all_gather, the input of
  // reduce_scatter, the tensor of all_reduce.
  int64_t bytes = 0;

  bool operator==(const Traffic&) const = default;
};

// Mesh axis and verb ("all_gather", "reduce_scatter", "all_reduce"; of segments also
// "all_to_all", "send" and "recv").
using Channel = std::pair<std::string, std::string>;

// The collective or message that a start runs, on its axis.
//   Unshard            all_gather      shards * shard_numel * compute_bytes
//   ReduceGradient     reduce_scatter  shards * shard_numel * reduce_bytes
//   AllReduceGradient  all_reduce      shard_numel * reduce_bytes
//   Send..., Receive...  send, recv over "pp"  the values at the stage's boundary
// Throws std::invalid_argument for another kind of action.
std::pair<Channel, int64_t> collective_of(const Action& start, const StepShape& shape);

// What the segment of a compute action exchanges in it.
const std::vector<Exchange>& exchanges_of(const Action& action, const StepShape& shape);

// Sum over the program, by channel. Beside the starts of groups it holds the scalars of
// the step, 8 bytes each, for axes of more than one rank:
//   CountTokens      all_reduce over "loss"
//   ClipGradient     all_reduce of the loss over "loss", of the squared norm over each
//                    axis that shards a group and over "tp", of both over "pp"
//   SumCopies g      send and recv of the group's shard, to and from each other copy
//   OptimizerStep g  all_reduce of the squared norm over the group's shard axis and
//                    over "tp"
// and what segments exchange in their compute actions.
// `loss_ranks` is the size of the axis "loss".
std::map<Channel, Traffic> traffic(const Program& program, const StepShape& shape,
                                   int64_t loss_ranks);

}  // namespace torchtitan::plan
