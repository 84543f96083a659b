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
    if (is_backward(action)) {
      for (const int64_t group : shape.segments.at(action.segment).groups)
        last[group] = i;
    } else if (action.kind == ActionKind::kWait &&
               (action.waits_for == ActionKind::kReduceGradient ||
                action.waits_for == ActionKind::kAllReduceGradient ||
                action.waits_for == ActionKind::kSumCopies)) {
      last[action.group] = i;
    }
  }
  std::erase_if(
      last, [&](const auto& entry) { return !shape.groups.at(entry.first).trainable; });
  return last;
}

}  // namespace

Program finish_step(const Program& before, const StepShape& shape,
                    OptimizerTiming timing) {
  Program program = before;
  // Last, because they travel in the channels of the messages between stages.
  for (size_t group = 0; group < shape.groups.size(); ++group) {
    if (shape.groups[group].copies == 1 || !shape.groups[group].trainable) continue;
    const Action sum{.kind = ActionKind::kSumCopies,
                     .group = static_cast<int64_t>(group)};
    program.push_back(sum);
    program.push_back(wait_for(sum));
  }
  const Action count{.kind = ActionKind::kCountTokens};
  const auto first_backward =
      std::find_if(program.begin(), program.end(),
                   [](const Action& action) { return is_backward(action); });
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
