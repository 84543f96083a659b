#include "plan/action.h"

#include <sstream>
#include <stdexcept>

namespace torchtitan::plan {

bool is_compute(const Action& action) {
  return action.kind == ActionKind::kForward || action.kind == ActionKind::kRecompute ||
         is_backward(action);
}

bool is_backward(const Action& action) {
  return action.kind == ActionKind::kBackward ||
         action.kind == ActionKind::kBackwardInput ||
         action.kind == ActionKind::kBackwardWeight;
}

bool is_transfer(const Action& action) {
  return action.kind == ActionKind::kSendActivation ||
         action.kind == ActionKind::kReceiveActivation ||
         action.kind == ActionKind::kSendGradient ||
         action.kind == ActionKind::kReceiveGradient;
}

bool is_host_copy(const Action& action) {
  return action.kind == ActionKind::kOffload || action.kind == ActionKind::kReload;
}

bool is_start(const Action& action) {
  return action.kind == ActionKind::kCountTokens ||
         action.kind == ActionKind::kUnshard ||
         action.kind == ActionKind::kReduceGradient ||
         action.kind == ActionKind::kAllReduceGradient ||
         action.kind == ActionKind::kSumCopies || is_host_copy(action) ||
         is_transfer(action);
}

Action wait_for(const Action& start) {
  Action wait = start;
  wait.kind = ActionKind::kWait;
  wait.waits_for = start.kind;
  return wait;
}

std::string to_string(ActionKind kind) {
  switch (kind) {
    case ActionKind::kCountTokens: return "CountTokens";
    case ActionKind::kUnshard: return "Unshard";
    case ActionKind::kReshard: return "Reshard";
    case ActionKind::kForward: return "Forward";
    case ActionKind::kRecompute: return "Recompute";
    case ActionKind::kBackward: return "Backward";
    case ActionKind::kBackwardInput: return "BackwardInput";
    case ActionKind::kBackwardWeight: return "BackwardWeight";
    case ActionKind::kReduceGradient: return "ReduceGradient";
    case ActionKind::kAllReduceGradient: return "AllReduceGradient";
    case ActionKind::kSumCopies: return "SumCopies";
    case ActionKind::kOffload: return "Offload";
    case ActionKind::kReload: return "Reload";
    case ActionKind::kSendActivation: return "SendActivation";
    case ActionKind::kReceiveActivation: return "ReceiveActivation";
    case ActionKind::kSendGradient: return "SendGradient";
    case ActionKind::kReceiveGradient: return "ReceiveGradient";
    case ActionKind::kWait: return "Wait";
    case ActionKind::kClipGradient: return "ClipGradient";
    case ActionKind::kOptimizerStep: return "OptimizerStep";
  }
  throw std::logic_error("to_string: not an ActionKind");
}

std::string to_string(const Action& action) {
  std::ostringstream text;
  text << to_string(action.kind);
  if (action.kind == ActionKind::kWait) text << " " << to_string(action.waits_for);
  if (action.stage >= 0) text << " st" << action.stage;
  if (action.segment >= 0) text << " s" << action.segment;
  if (action.group >= 0) text << " g" << action.group;
  if (action.microbatch >= 0) text << " mb" << action.microbatch;
  if (action.overlaps_next) text << " with the next";
  return text.str();
}

}  // namespace torchtitan::plan
