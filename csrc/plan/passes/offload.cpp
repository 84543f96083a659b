#include "plan/passes/offload.h"

#include <map>
#include <utility>

#include "base/errors.h"

namespace torchtitan::plan::passes {
namespace {

// Positions in the program of the compute actions, and what goes around them.
struct Around {
  size_t position;
  Program starts_before = {}, waits_before = {};
  Program starts_after = {}, waits_after = {};
};

Action host_copy(ActionKind kind, const Action& of) {
  return {.kind = kind, .segment = of.segment, .microbatch = of.microbatch};
}

void append(Program& program, const Program& more) {
  program.insert(program.end(), more.begin(), more.end());
}

std::vector<Around> find_places(const Program& program, const StepShape& shape,
                                int64_t depth) {
  std::vector<Around> computes;
  for (size_t i = 0; i < program.size(); ++i) {
    if (is_compute(program[i])) computes.push_back({.position = i});
  }
  std::map<std::pair<int64_t, int64_t>, size_t> forwards;  // not needed so far
  for (size_t i = 0; i < computes.size(); ++i) {
    const Action& action = program[computes[i].position];
    const std::pair key{action.segment, action.microbatch};
    if (!shape.segments.at(action.segment).offload) continue;
    if (action.kind == ActionKind::kForward) {
      forwards[key] = i;
      continue;
    }
    const auto forward = forwards.extract(key);
    const auto away = static_cast<size_t>(depth);
    if (!forward || i <= forward.mapped() + 2 * away + 1) continue;
    const Action leave = host_copy(ActionKind::kOffload, action);
    const Action come = host_copy(ActionKind::kReload, action);
    computes[forward.mapped()].starts_after.push_back(leave);
    computes[forward.mapped() + away].waits_after.push_back(wait_for(leave));
    computes[i - away].starts_before.push_back(come);
    computes[i].waits_before.push_back(wait_for(come));
  }
  return computes;
}

}  // namespace

Program offload(const Program& program, const StepShape& shape, int64_t depth) {
  base::check_value(depth >= 0, "offload: the depth must be at least 0, got ", depth);
  const auto computes = find_places(program, shape, depth);
  auto next = computes.begin();
  Program result;
  for (size_t i = 0; i < program.size(); ++i) {
    const bool is_next = next != computes.end() && next->position == i;
    if (is_next) {
      append(result, next->starts_before);
      append(result, next->waits_before);
    }
    result.push_back(program[i]);
    if (is_next) {
      append(result, next->starts_after);
      append(result, next->waits_after);
      ++next;
    }
  }
  return result;
}

}  // namespace torchtitan::plan::passes
