#include "plan/passes/prefetch.h"

#include <algorithm>
#include <deque>

#include "base/errors.h"

namespace torchtitan::plan::passes {
namespace {

using base::check_value;

bool starts_reduction(const Action& action) {
  return action.kind == ActionKind::kReduceGradient ||
         action.kind == ActionKind::kAllReduceGradient;
}

bool ends_reduction(const Action& action) {
  return action.kind == ActionKind::kWait &&
         (action.waits_for == ActionKind::kReduceGradient ||
          action.waits_for == ActionKind::kAllReduceGradient);
}

// A Wait that is held back, and the starts that need its result.
struct Held {
  Action wait;
  Program followers;
  int64_t compute_left;
};

class Delayer {
 public:
  Delayer(const StepShape& shape, int64_t depth) : shape_(shape), depth_(depth) {}

  Program run(const Program& program) {
    for (const Action& action : program) {
      if (ends_reduction(action)) {
        hold(action);
      } else if (starts_reduction(action) && is_held(action.group)) {
        last_held(action.group).followers.push_back(action);
      } else {
        if (is_backward(action)) release_groups_of(action.segment);
        result_.push_back(action);
        if (is_compute(action)) count_compute();
      }
    }
    while (!held_.empty()) release_first();
    return std::move(result_);
  }

 private:
  void hold(const Action& wait) {
    // The start may itself be held back behind an earlier Wait of the group.
    if (is_held(wait.group)) {
      last_held(wait.group).followers.push_back(wait);
    } else {
      held_.push_back({wait, {}, depth_});
    }
  }

  bool is_held(int64_t group) const {
    return std::any_of(held_.begin(), held_.end(),
                       [&](const Held& held) { return held.wait.group == group; });
  }

  Held& last_held(int64_t group) {
    return *std::find_if(held_.rbegin(), held_.rend(),
                         [&](const Held& held) { return held.wait.group == group; });
  }

  void release_first() {
    const Held first = std::move(held_.front());
    held_.pop_front();
    result_.push_back(first.wait);
    for (const Action& follower : first.followers) {
      if (ends_reduction(follower)) {
        hold(follower);
      } else {
        result_.push_back(follower);
      }
    }
  }

  // In the order of their starts, so that every rank waits in the same order.
  void release_groups_of(int64_t segment) {
    for (const int64_t group : shape_.segments.at(segment).groups) {
      while (is_held(group)) release_first();
    }
  }

  void count_compute() {
    for (Held& held : held_) --held.compute_left;
    while (!held_.empty() && held_.front().compute_left <= 0) release_first();
  }

  const StepShape& shape_;
  int64_t depth_;
  std::deque<Held> held_;
  Program result_;
};

bool is_of_message(const Action& action) {
  return is_transfer(action) ||
         (action.kind == ActionKind::kWait && is_transfer({.kind = action.waits_for}));
}

// Where the Unshard at `index` may start: after `depth` compute actions less, and not
// behind the messages that the first of them waits for, but not above a Reshard of its
// group. Returns the position before which it goes.
size_t earliest_start(const Program& program, size_t index, int64_t depth) {
  size_t position = index;
  for (size_t i = index; i-- > 0;) {
    const Action& action = program[i];
    if (action.kind == ActionKind::kReshard && action.group == program[index].group) {
      return i + 1;
    }
    if (!is_compute(action)) continue;
    if (depth-- == 0) break;
    position = i;
  }
  while (position > 0 && is_of_message(program[position - 1])) --position;
  return position;
}

bool is_wait_for_unshard(const Action& action, int64_t group) {
  return action.kind == ActionKind::kWait && action.waits_for == ActionKind::kUnshard &&
         action.group == group;
}

}  // namespace

Program prefetch(const Program& program, int64_t depth) {
  check_value(depth >= 0, "prefetch: the depth must be at least 0, got ", depth);
  if (depth == 0) return program;
  std::vector<Program> before(program.size());  // starts that move before an action
  std::vector<bool> removed(program.size(), false);
  for (size_t i = 0; i < program.size(); ++i) {
    const Action& action = program[i];
    if (action.kind != ActionKind::kUnshard) continue;
    const size_t position = earliest_start(program, i, depth);
    removed[i] = true;
    const bool meets_reshard = position > 0 &&
                               program[position - 1].kind == ActionKind::kReshard &&
                               program[position - 1].group == action.group;
    if (!meets_reshard) {
      before[position].push_back(action);
      continue;
    }
    removed[position - 1] = true;
    const auto wait = std::find_if(
        program.begin() + i, program.end(),
        [&](const Action& a) { return is_wait_for_unshard(a, action.group); });
    removed[wait - program.begin()] = true;
  }
  Program result;
  for (size_t i = 0; i < program.size(); ++i) {
    result.insert(result.end(), before[i].begin(), before[i].end());
    if (!removed[i]) result.push_back(program[i]);
  }
  return result;
}

Program delay_reductions(const Program& program, const StepShape& shape,
                         int64_t depth) {
  check_value(depth >= 0, "delay_reductions: the depth must be at least 0, got ",
              depth);
  if (depth == 0) return program;
  return Delayer(shape, depth).run(program);
}

}  // namespace torchtitan::plan::passes
