#include "plan/verify.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include "base/errors.h"
#include "plan/action_fields.h"
#include "plan/host_ledger.h"
#include "plan/stage_ledger.h"

namespace torchtitan::plan {
namespace {

using base::message;

// What has happened to one segment on one microbatch.
struct Work {
  bool forward = false;
  bool saved = false;           // what Backward needs is there
  bool input_gradient = false;  // Backward, or its first half, has run
  bool rest = false;            // what BackwardWeight needs is there
  bool backward = false;        // all of it
};

struct GroupState {
  bool gathered = false;
  bool stepped = false;
  bool all_reduced = false;
  bool copies_summed = false;
  int64_t num_contributions = 0;
  std::map<int64_t, int64_t> unreduced;  // contributions by microbatch
};

class Replay {
 public:
  Replay(const StepShape& shape, ProgramKind kind)
      : shape_(shape), training_(kind == ProgramKind::kTraining),
        work_(shape.segments.size(), std::vector<Work>(shape.num_microbatches)),
        groups_(shape.groups.size()), stages_(shape), host_(shape),
        num_users_(shape.groups.size(), 0) {
    for (const SegmentShape& segment : shape.segments) {
      for (const int64_t group : segment.groups) ++num_users_[group];
    }
  }

  void run(const Program& program) {
    for (size_t i = 0; i < program.size(); ++i) {
      where_ = message("program action ", i, " (", to_string(program[i]), ")");
      execute(program[i]);
    }
    where_ = message("program end, after ", program.size(), " actions");
    check_end();
  }

 private:
  // Kind, group, stage, segment, microbatch.
  using Flight = std::tuple<ActionKind, int64_t, int64_t, int64_t, int64_t>;

  static Flight flight(ActionKind kind, const Action& action) {
    return {kind, action.group, action.stage, action.segment, action.microbatch};
  }

  template <class... Parts>
  void require(bool holds, const Parts&... parts) const {
    if (!holds) throw std::invalid_argument(message(where_, ": ", parts...));
  }

  void require_none(const std::string& problem) const {
    require(problem.empty(), problem);
  }

  std::string name(int64_t group) const {
    return "group '" + shape_.groups[group].name + "'";
  }

  void execute(const Action& action) {
    require_none(wrong_field(action, shape_, stages_, training_));
    switch (action.kind) {
      case ActionKind::kCountTokens:
        require(!tokens_counted_, "the tokens are counted already");
        return start(action);
      case ActionKind::kUnshard:
        require(shape_.groups[action.group].shards > 1, name(action.group),
                " is whole on every rank");
        require(!groups_[action.group].gathered, name(action.group),
                " is gathered already");
        return start(action);
      case ActionKind::kReshard:
        require(groups_[action.group].gathered, name(action.group), " is not gathered");
        groups_[action.group].gathered = false;
        return;
      case ActionKind::kForward: return forward(action);
      case ActionKind::kRecompute: return recompute(action);
      case ActionKind::kBackward:
        backward_input(action);
        return backward_weight(action);
      case ActionKind::kBackwardInput: return backward_input(action);
      case ActionKind::kBackwardWeight: return backward_weight(action);
      case ActionKind::kSendActivation:
      case ActionKind::kSendGradient: return send(action);
      case ActionKind::kReceiveActivation:
      case ActionKind::kReceiveGradient: return receive(action);
      case ActionKind::kReduceGradient: return start_reduce(action);
      case ActionKind::kAllReduceGradient: return start_all_reduce(action);
      case ActionKind::kSumCopies: return start_copy_sum(action);
      case ActionKind::kOffload: return start_offload(action);
      case ActionKind::kReload: return start_reload(action);
      case ActionKind::kWait: return wait(action);
      case ActionKind::kClipGradient:
        require(!clipped_, "the gradients are clipped already");
        for (size_t group = 0; group < groups_.size(); ++group) check_final(group);
        clipped_ = true;
        return;
      case ActionKind::kOptimizerStep: return optimizer_step(action);
    }
  }

  void start(const Action& action) {
    require(in_flight_.insert(flight(action.kind, action)).second,
            "the same is under way already");
  }

  bool is_under_way(ActionKind kind, int64_t group) const {
    return in_flight_.contains({kind, group, -1, -1, -1});
  }

  void wait(const Action& action) {
    require(in_flight_.erase(flight(action.waits_for, action)) == 1,
            "nothing was started that this waits for");
    if (action.waits_for == ActionKind::kReceiveActivation) {
      stages_.messages(action.stage, action.microbatch).inputs = true;
    } else if (action.waits_for == ActionKind::kReceiveGradient) {
      stages_.messages(action.stage, action.microbatch).gradients = true;
    } else if (action.waits_for == ActionKind::kOffload) {
      host_.end_offload(action.segment, action.microbatch);
    } else if (action.waits_for == ActionKind::kReload) {
      host_.end_reload(action.segment, action.microbatch);
    } else if (is_transfer({.kind = action.waits_for})) {
      return;
    } else if (action.waits_for == ActionKind::kCountTokens) {
      tokens_counted_ = true;
    } else if (action.waits_for == ActionKind::kUnshard) {
      groups_[action.group].gathered = true;
    } else if (action.waits_for == ActionKind::kReduceGradient) {
      groups_[action.group].unreduced.clear();
    } else if (action.waits_for == ActionKind::kSumCopies) {
      groups_[action.group].copies_summed = true;
    } else {
      groups_[action.group].all_reduced = true;
    }
  }

  void check_parameters(const Action& action) const {
    for (const int64_t group : shape_.segments[action.segment].groups) {
      require(shape_.groups[group].shards == 1 || groups_[group].gathered, name(group),
              " is not gathered");
      require(!groups_[group].stepped, name(group), " was updated before its last use");
    }
  }

  Work& work_of(const Action& action) {
    return work_[action.segment][action.microbatch];
  }

  void forward(const Action& action) {
    check_parameters(action);
    Work& work = work_of(action);
    require(!work.forward, "has run already");
    const auto& stage = stages_.with_segment(action.segment);
    if (action.segment == stage.first_segment && stage.receives) {
      require(stages_.messages(stage.index, action.microbatch).inputs,
              "its input is missing: stage ", stage.index, " has not received it");
    } else {
      require(
          action.segment == 0 || work_[action.segment - 1][action.microbatch].forward,
          "its input is missing: segment ", action.segment - 1, " has not run");
    }
    work.forward = true;
    work.saved = training_ && !shape_.segments[action.segment].recompute;
  }

  void start_offload(const Action& action) {
    const Work& work = work_of(action);
    require(work.forward, "comes before its Forward");
    require_none(host_.start_offload(action.segment, action.microbatch));
    require(
        !work.input_gradient && work.saved != shape_.segments[action.segment].recompute,
        "what Forward keeps was used");
    start(action);
  }

  void start_reload(const Action& action) {
    require_none(host_.start_reload(action.segment, action.microbatch));
    start(action);
  }

  void recompute(const Action& action) {
    check_parameters(action);
    Work& work = work_of(action);
    require_none(host_.use(action.segment, action.microbatch));
    require(shape_.segments[action.segment].recompute, "segment '",
            shape_.segments[action.segment].name, "' is not to be recomputed");
    require(work.forward, "comes before its Forward");
    require(!work.input_gradient && !work.saved,
            "what it would save is there or was used");
    work.saved = true;
  }

  void backward_input(const Action& action) {
    check_parameters(action);
    Work& work = work_of(action);
    require(!work.input_gradient, "has run already");
    require_none(host_.use(action.segment, action.microbatch));
    require(work.saved, "what Forward saves for it is missing");
    const auto& stage = stages_.with_segment(action.segment);
    const size_t next = action.segment + 1;
    if (action.segment + 1 == stage.end() && stage.sends) {
      require(stages_.messages(stage.index, action.microbatch).gradients,
              "its gradient is missing: stage ", stage.index, " has not received it");
    } else if (action.segment + 1 < stage.end() || !stage.is_last) {
      require(work_[next][action.microbatch].input_gradient,
              "its gradient is missing: Backward of segment ", next, " has not run");
    }
    require(tokens_counted_, "the token count has not been waited for");
    work.saved = false;
    work.input_gradient = work.rest = true;
  }

  void backward_weight(const Action& action) {
    if (shape_.segments[action.segment].weight_half_reads_parameters) {
      check_parameters(action);
    }
    Work& work = work_of(action);
    require(!work.backward, "has run already");
    require(work.rest, "what the first half of the backward leaves for it is missing");
    work.rest = false;
    work.backward = true;
    for (const int64_t group : shape_.segments[action.segment].groups) {
      if (!shape_.groups[group].trainable) continue;
      require(!is_under_way(ActionKind::kReduceGradient, group) &&
                  !is_under_way(ActionKind::kAllReduceGradient, group) &&
                  !is_under_way(ActionKind::kSumCopies, group) &&
                  !groups_[group].all_reduced && !groups_[group].copies_summed,
              "adds to the gradient of ", name(group),
              " during or after its reduction");
      ++groups_[group].num_contributions;
      if (shape_.groups[group].shards > 1) {
        ++groups_[group].unreduced[action.microbatch];
      }
    }
  }

  void send(const Action& action) {
    const StageShape& stage = stages_.stage(action.stage);
    const bool outputs = action.kind == ActionKind::kSendActivation;
    require(outputs ? stage.sends : stage.receives, "no other rank expects it");
    bool& sent = outputs
                     ? stages_.messages(action.stage, action.microbatch).sent_outputs
                     : stages_.messages(action.stage, action.microbatch).sent_gradients;
    require(!sent, "has been sent already");
    const int64_t maker = outputs ? stage.end() - 1 : stage.first_segment;
    const Work& work = work_[maker][action.microbatch];
    require(outputs ? work.forward : work.input_gradient,
            "what it sends is missing: ", outputs ? "Forward" : "Backward",
            " of segment ", maker, " has not run");
    sent = true;
    start(action);
  }

  void receive(const Action& action) {
    const StageShape& stage = stages_.stage(action.stage);
    const bool inputs = action.kind == ActionKind::kReceiveActivation;
    require(inputs ? stage.receives : stage.sends, "no other rank sends it");
    const StageMessages& messages = stages_.messages(action.stage, action.microbatch);
    require(!(inputs ? messages.inputs : messages.gradients), "has come already");
    start(action);
  }

  void start_reduce(const Action& action) {
    const GroupShape& group = shape_.groups[action.group];
    require(group.shards > 1 && group.trainable, name(action.group),
            " has no gradient to reduce over shards");
    const auto& unreduced = groups_[action.group].unreduced;
    require(!unreduced.empty(), "no gradient was added since the last reduction");
    for (const auto& [microbatch, count] : unreduced) {
      require(count == num_users_[action.group], "the gradient of microbatch ",
              microbatch, " has ", count, " of ", num_users_[action.group],
              " contributions");
    }
    start(action);
  }

  bool is_complete(int64_t group) const {
    return groups_[group].num_contributions ==
               num_users_[group] * shape_.num_microbatches &&
           groups_[group].unreduced.empty();
  }

  void start_all_reduce(const Action& action) {
    const GroupShape& group = shape_.groups[action.group];
    require(group.replicas > 1 && group.trainable, name(action.group),
            " has no gradient to sum over replicas");
    require(!groups_[action.group].all_reduced, "the gradient is summed already");
    require(is_complete(action.group), "the gradient of the step is not complete");
    start(action);
  }

  void start_copy_sum(const Action& action) {
    const GroupShape& group = shape_.groups[action.group];
    require(group.copies > 1 && group.trainable, name(action.group),
            " is of no other stage");
    require(!groups_[action.group].copies_summed, "the gradient is summed already");
    check_summed(action.group);
    start(action);
  }

  void check_final(int64_t group) const {
    if (!shape_.groups[group].trainable || num_users_[group] == 0) return;
    check_summed(group);
    require(shape_.groups[group].copies == 1 || groups_[group].copies_summed,
            "the gradient of ", name(group),
            " is not summed over the stages that share"
            " it");
  }

  void check_summed(int64_t group) const {
    if (!shape_.groups[group].trainable || num_users_[group] == 0) return;
    require(is_complete(group), "the gradient of ", name(group), " is not complete");
    require(shape_.groups[group].replicas == 1 || groups_[group].all_reduced,
            "the gradient of ", name(group), " is not summed over replicas");
  }

  void optimizer_step(const Action& action) {
    require(action.group != -1 || clipped_, "comes before ClipGradient");
    for (int64_t group = 0; group < static_cast<int64_t>(groups_.size()); ++group) {
      if (action.group != -1 && action.group != group) continue;
      require(action.group == -1 || shape_.groups[group].trainable, name(group),
              " is not trainable");
      check_final(group);
      require(!groups_[group].stepped, name(group), " has stepped already");
      groups_[group].stepped = true;
    }
  }

  void check_end() const {
    for (const auto& [kind, group, stage, segment, microbatch] : in_flight_) {
      require(false, "nobody waits for ",
              to_string(Action{.kind = kind,
                               .stage = stage,
                               .segment = segment,
                               .group = group,
                               .microbatch = microbatch}));
    }
    const std::string missing = stages_.missing(training_);
    require(missing.empty(), missing, " is missing");
    for (size_t segment = 0; segment < work_.size(); ++segment) {
      for (size_t microbatch = 0; microbatch < work_[segment].size(); ++microbatch) {
        const Work& work = work_[segment][microbatch];
        require(work.forward, "Forward s", segment, " mb", microbatch, " is missing");
        require(!training_ || work.backward, "Backward s", segment, " mb", microbatch,
                " is missing");
      }
    }
    require(!training_ || clipped_, "ClipGradient is missing");
    for (size_t group = 0; group < groups_.size(); ++group) {
      require(!groups_[group].gathered, name(group), " stays gathered");
      require(!training_ || groups_[group].stepped || !shape_.groups[group].trainable ||
                  num_users_[group] == 0,
              name(group), " is never updated");
    }
  }

  const StepShape& shape_;
  const bool training_;
  std::vector<std::vector<Work>> work_;  // [segment][microbatch]
  std::vector<GroupState> groups_;
  StageLedger stages_;
  HostLedger host_;
  std::vector<int64_t> num_users_;  // segments that use a group
  std::set<Flight> in_flight_;
  bool tokens_counted_ = false;
  bool clipped_ = false;
  std::string where_;
};

}  // namespace

void verify(const Program& program, const StepShape& shape, ProgramKind kind) {
  check(shape);
  Replay(shape, kind).run(program);
}

}  // namespace torchtitan::plan
