#include "plan/passes/shard.h"

#include <map>
#include <utility>

namespace torchtitan::plan::passes {
namespace {

// The second half of a backward may have all that it needs but gradients.
bool reads_parameters(const Action& action, const StepShape& shape) {
  return is_compute(action) &&
         (action.kind != ActionKind::kBackwardWeight ||
          shape.segments.at(action.segment).weight_half_reads_parameters);
}

// Adds to the gradients of parameters.
bool adds_gradients(const Action& action) {
  return is_backward(action) && action.kind != ActionKind::kBackwardInput;
}

// Positions of compute actions in the program.
struct Uses {
  // Next use of the group after a position: next[{group, position}].
  std::map<std::pair<int64_t, size_t>, size_t> next;
  // Last action that adds to the gradient of a group, by {group, microbatch} and over
  // the step.
  std::map<std::pair<int64_t, int64_t>, size_t> last_backward;
  std::map<int64_t, size_t> last_backward_of_step;
};

Uses find_uses(const Program& program, const StepShape& shape) {
  Uses uses;
  std::map<int64_t, size_t> previous;
  for (size_t i = 0; i < program.size(); ++i) {
    const Action& action = program[i];
    if (!is_compute(action)) continue;
    for (const int64_t group : shape.segments.at(action.segment).groups) {
      if (reads_parameters(action, shape)) {
        if (const auto found = previous.find(group); found != previous.end()) {
          uses.next[{group, found->second}] = i;
        }
        previous[group] = i;
      }
      if (adds_gradients(action)) {
        uses.last_backward[{group, action.microbatch}] = i;
        uses.last_backward_of_step[group] = i;
      }
    }
  }
  return uses;
}

// Whether a group gathered for `current` stays so for its next use.
bool is_kept(Reshard policy, const Action& current, const Action& next, bool adjacent) {
  if (current.kind == ActionKind::kRecompute && adjacent) return true;
  switch (policy) {
    case Reshard::kAlways: return false;
    case Reshard::kDefault: return adjacent;
    case Reshard::kNever: return adjacent || current.microbatch == next.microbatch;
    case Reshard::kAfterStep: return true;
  }
  return false;
}

void append_with_wait(Program& program, const Action& start) {
  program.push_back(start);
  program.push_back(wait_for(start));
}

}  // namespace

Program shard(const Program& program, const StepShape& shape) {
  const Uses uses = find_uses(program, shape);
  std::vector<bool> gathered(shape.groups.size(), false);
  Program result;
  for (size_t i = 0; i < program.size(); ++i) {
    const Action& action = program[i];
    if (!is_compute(action)) {
      result.push_back(action);
      continue;
    }
    const std::vector<int64_t>& groups = shape.segments[action.segment].groups;
    for (const int64_t g : groups) {
      if (shape.groups[g].shards == 1 || gathered[g] ||
          !reads_parameters(action, shape))
        continue;
      append_with_wait(result, {.kind = ActionKind::kUnshard, .group = g});
      gathered[g] = true;
    }
    result.push_back(action);
    for (const int64_t g : groups) {
      const auto next = uses.next.find({g, i});
      if (!gathered[g] || !reads_parameters(action, shape)) continue;
      gathered[g] = next != uses.next.end() &&
                    is_kept(shape.groups[g].reshard_after_forward, action,
                            program[next->second], next->second == i + 1);
      if (!gathered[g]) result.push_back({.kind = ActionKind::kReshard, .group = g});
    }
    if (!adds_gradients(action)) continue;
    for (const int64_t g : groups) {
      const GroupShape& group = shape.groups[g];
      if (!group.trainable) continue;
      const bool is_last = uses.last_backward_of_step.at(g) == i;
      const bool reduces = group.reshard_after_forward == Reshard::kAfterStep
                               ? is_last
                               : uses.last_backward.at({g, action.microbatch}) == i;
      if (group.shards > 1 && reduces) {
        append_with_wait(result, {.kind = ActionKind::kReduceGradient, .group = g});
      }
      if (group.replicas > 1 && is_last) {
        append_with_wait(result, {.kind = ActionKind::kAllReduceGradient, .group = g});
      }
    }
  }
  return result;
}

}  // namespace torchtitan::plan::passes
