#include "plan/passes/recompute.h"

namespace torchtitan::plan::passes {

Program recompute(const Program& program, const StepShape& shape) {
  Program result;
  for (const Action& action : program) {
    if ((action.kind == ActionKind::kBackward ||
         action.kind == ActionKind::kBackwardInput) &&
        shape.segments.at(action.segment).recompute) {
      result.push_back(action);
      result.back().kind = ActionKind::kRecompute;
    }
    result.push_back(action);
  }
  return result;
}

}  // namespace torchtitan::plan::passes
