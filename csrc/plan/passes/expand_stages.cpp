#include "plan/passes/expand_stages.h"

#include <algorithm>

#include "base/errors.h"

namespace torchtitan::plan::passes {
namespace {

Program segments_of(const Action& action, const StepShape& shape) {
  const StageShape& stage = stage_of(action, shape);
  Program program;
  for (int64_t segment = stage.first_segment; segment < stage.end(); ++segment) {
    program.push_back(
        {.kind = action.kind, .segment = segment, .microbatch = action.microbatch});
  }
  if (is_backward(action)) std::reverse(program.begin(), program.end());
  return program;
}

void append_in_turns(Program& result, const Program& first, const Program& second) {
  for (size_t i = 0; i < std::max(first.size(), second.size()); ++i) {
    if (i < first.size()) result.push_back(first[i]);
    if (i < second.size()) result.push_back(second[i]);
  }
}

}  // namespace

Program expand_stages(const Program& program, const StepShape& shape) {
  Program result;
  for (size_t i = 0; i < program.size(); ++i) {
    const Action& action = program[i];
    if (!is_compute(action)) {
      result.push_back(action);
    } else if (action.overlaps_next) {
      base::check_value(i + 1 < program.size() && is_compute(program[i + 1]),
                        "expand_stages: ", to_string(action), " overlaps with nothing");
      append_in_turns(result, segments_of(action, shape),
                      segments_of(program[++i], shape));
    } else {
      append_in_turns(result, segments_of(action, shape), {});
    }
  }
  return result;
}

}  // namespace torchtitan::plan::passes
