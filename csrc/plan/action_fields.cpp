#include "plan/action_fields.h"

#include "base/errors.h"

namespace torchtitan::plan {
namespace {

using base::message;

std::string wrong_index(const char* what, int64_t index, bool expected, size_t count) {
  if (expected ? index >= 0 && index < static_cast<int64_t>(count) : index == -1) {
    return "";
  }
  return message("expected ", expected ? message("a ", what, " below ", count) : "no ",
                 expected ? "" : what, ", found ", index);
}

bool has_group(const Action& action, ActionKind kind) {
  switch (kind) {
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGradient:
    case ActionKind::kAllReduceGradient:
    case ActionKind::kSumCopies: return true;
    case ActionKind::kOptimizerStep: return action.group != -1;
    default: return false;
  }
}

bool runs_without_backward(ActionKind kind) {
  return kind == ActionKind::kForward || kind == ActionKind::kUnshard ||
         kind == ActionKind::kReshard || kind == ActionKind::kSendActivation ||
         kind == ActionKind::kReceiveActivation;
}

}  // namespace

std::string wrong_field(const Action& action, const StepShape& shape,
                        const StageLedger& stages, bool training) {
  const bool waits = action.kind == ActionKind::kWait;
  const ActionKind kind = waits ? action.waits_for : action.kind;
  if (waits != (action.waits_for != ActionKind::kWait)) {
    return "waits_for belongs to a Wait and names the kind of its start";
  }
  if (waits && !is_start({.kind = kind})) return "this kind of action has no Wait";
  const bool has_segment = is_compute({.kind = kind}) || is_host_copy({.kind = kind});
  const bool has_stage = is_transfer({.kind = kind});
  const auto segment =
      wrong_index("segment", action.segment, has_segment, shape.segments.size());
  if (!segment.empty()) return segment;
  const auto microbatch =
      wrong_index("microbatch", action.microbatch, has_segment || has_stage,
                  static_cast<size_t>(shape.num_microbatches));
  if (!microbatch.empty()) return microbatch;
  if (has_stage && !stages.has(action.stage))
    return "this rank does not have the stage";
  if (!has_stage && action.stage != -1) return "expected no stage";
  const auto group =
      wrong_index("group", action.group, has_group(action, kind), shape.groups.size());
  if (!group.empty()) return group;
  if (!training && !runs_without_backward(kind)) {
    return "has no place in a program without backward";
  }
  return "";
}

}  // namespace torchtitan::plan
