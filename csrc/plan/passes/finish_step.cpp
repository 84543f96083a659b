#include "plan/passes/finish_step.h"

#include <algorithm>
#include <map>

namespace torchtitan::plan::passes {
namespace {

// Index of the last action that changes the gradient of each trainable group.
std::map<int64_t, size_t> last_gradients(const Program& program,
                                         const StepShape& shape) {
  std::map<int64_t, size_t> last;
  for (size_t i = 0; i < program.size(); ++i) {
    const Action& action = program[i];
    if (action.kind == ActionKind::kBackward) {
      for (const int64_t group : shape.segments.at(action.segment).groups)
        last[group] = i;
    } else if (action.kind == ActionKind::kWait &&
               (action.waits_for == ActionKind::kReduceGradient ||
                action.waits_for == ActionKind::kAllReduceGradient)) {
      last[action.group] = i;
    }
  }
  std::erase_if(
      last, [&](const auto& entry) { return !shape.groups.at(entry.first).trainable; });
  return last;
}

}  // namespace

Program finish_step(const Program& program, const StepShape& shape,
                    OptimizerTiming timing) {
  const Action count{.kind = ActionKind::kCountTokens};
  const auto first_backward = std::find_if(
      program.begin(), program.end(),
      [](const Action& action) { return action.kind == ActionKind::kBackward; });
  std::map<int64_t, size_t> steps;
  if (timing == OptimizerTiming::kAtLastGradient)
    steps = last_gradients(program, shape);

  Program result{count};
  for (auto action = program.begin(); action != program.end(); ++action) {
    if (action == first_backward) result.push_back(wait_for(count));
    result.push_back(*action);
    for (const auto& [group, last] : steps) {
      if (last != static_cast<size_t>(action - program.begin())) continue;
      result.push_back({.kind = ActionKind::kOptimizerStep, .group = group});
    }
  }
  result.push_back({.kind = ActionKind::kClipGradient});
  if (timing == OptimizerTiming::kAtEnd) {
    result.push_back({.kind = ActionKind::kOptimizerStep});
  }
  return result;
}

}  // namespace torchtitan::plan::passes
