#include "plan/schedules/schedule.h"

#include "base/errors.h"

namespace torchtitan::plan::schedules {
namespace {

using base::message;

// What has been done for one stage and microbatch.
struct Done {
  bool forward = false;
  bool input = false;  // by I or B
  bool weight = false;
};

class Replay {
 public:
  Replay(const Schedule& schedule, ProgramKind kind)
      : schedule_(schedule), training_(kind == ProgramKind::kTraining),
        done_(schedule.num_stages(), std::vector<Done>(schedule.num_microbatches)) {}

  std::optional<ScheduleProblem> run() {
    if (auto problem = check_stages()) return problem;
    for (size_t rank = 0; rank < schedule_.ranks.size(); ++rank) {
      for (size_t i = 0; i < schedule_.ranks[rank].size(); ++i) {
        const std::string what = misfit(static_cast<int64_t>(rank), i);
        if (!what.empty()) return problem(rank, i, what);
      }
    }
    if (auto problem = find_missing()) return problem;
    return find_circle();
  }

 private:
  static ScheduleProblem problem(size_t rank, size_t index, std::string what) {
    return {static_cast<int64_t>(rank), static_cast<int64_t>(index), std::move(what)};
  }

  std::optional<ScheduleProblem> check_stages() const {
    const auto num_ranks = static_cast<int64_t>(schedule_.ranks.size());
    for (int64_t stage = 0; stage < schedule_.num_stages(); ++stage) {
      const int64_t rank = schedule_.rank_of_stage[stage];
      if (rank >= 0 && rank < num_ranks) continue;
      return problem(0, 0,
                     message("stage ", stage, " is on rank ", rank, " of ", num_ranks));
    }
    return std::nullopt;
  }

  // Why the action is wrong, whatever the other ranks do; also marks it as done.
  std::string misfit(int64_t rank, size_t index) {
    const std::vector<StageAction>& actions = schedule_.ranks[rank];
    const auto& [work, stage, microbatch, overlaps] = actions[index];
    if (stage < 0 || stage >= schedule_.num_stages()) {
      return message("there are ", schedule_.num_stages(), " stages");
    }
    if (microbatch < 0 || microbatch >= schedule_.num_microbatches) {
      return message("there are ", schedule_.num_microbatches, " microbatches");
    }
    if (schedule_.rank_of_stage[stage] != rank) {
      return message("stage ", stage, " is on rank ", schedule_.rank_of_stage[stage]);
    }
    if (overlaps && !is_pair(actions, index)) {
      return "only a forward and the backward of another microbatch right after it "
             "can run together";
    }
    if (!training_ && work != StageWork::kForward) return "is not a forward";
    Done& done = done_[stage][microbatch];
    switch (work) {
      case StageWork::kForward:
        if (done.forward) return "comes twice";
        done.forward = true;
        return "";
      case StageWork::kBackward:
        if (done.input || done.weight) return "comes twice";
        if (!done.forward) return "comes before its forward";
        done.input = done.weight = true;
        return "";
      case StageWork::kBackwardInput:
        if (done.input) return "comes twice";
        if (!done.forward) return "comes before its forward";
        done.input = true;
        return "";
      case StageWork::kBackwardWeight:
        if (done.weight) return "comes twice";
        if (!done.input) return "comes before its backward of the inputs";
        done.weight = true;
        return "";
    }
    return "is no work of a stage";
  }

  static bool is_pair(const std::vector<StageAction>& actions, size_t index) {
    if (actions[index].work != StageWork::kForward) return false;
    if (index + 1 == actions.size()) return false;
    const StageAction& next = actions[index + 1];
    return (next.work == StageWork::kBackward ||
            next.work == StageWork::kBackwardInput) &&
           next.microbatch != actions[index].microbatch;
  }

  std::optional<ScheduleProblem> find_missing() const {
    for (int64_t stage = 0; stage < schedule_.num_stages(); ++stage) {
      for (int64_t microbatch = 0; microbatch < schedule_.num_microbatches;
           ++microbatch) {
        const Done& done = done_[stage][microbatch];
        if (done.forward && (!training_ || (done.input && done.weight))) continue;
        const StageWork missing = !done.forward ? StageWork::kForward
                                  : done.input  ? StageWork::kBackwardWeight
                                                : StageWork::kBackward;
        const int64_t rank = schedule_.rank_of_stage[stage];
        return problem(
            rank, schedule_.ranks[rank].size(),
            to_string(StageAction{missing, stage, microbatch}) + " is missing");
      }
    }
    return std::nullopt;
  }

  // The work on another stage whose result `action` needs, if there is one.
  std::optional<StageAction> input_of(const StageAction& action) const {
    if (action.work == StageWork::kForward && action.stage > 0) {
      return StageAction{StageWork::kForward, action.stage - 1, action.microbatch};
    }
    const bool needs_gradient =
        action.work == StageWork::kBackward || action.work == StageWork::kBackwardInput;
    if (needs_gradient && action.stage + 1 < schedule_.num_stages()) {
      return StageAction{StageWork::kBackward, action.stage + 1, action.microbatch};
    }
    return std::nullopt;
  }

  bool is_ready(const StageAction& action) const {
    const auto input = input_of(action);
    if (!input) return true;
    const Done& done = done_[input->stage][input->microbatch];
    return input->work == StageWork::kForward ? done.forward : done.input;
  }

  // Of a pair, both must be able to start.
  size_t runnable(const std::vector<StageAction>& actions, size_t index) const {
    if (!is_ready(actions[index])) return 0;
    if (!actions[index].overlaps_next) return 1;
    return is_ready(actions[index + 1]) ? 2 : 0;
  }

  void run_action(const StageAction& action) {
    Done& done = done_[action.stage][action.microbatch];
    if (action.work == StageWork::kForward) {
      done.forward = true;
    } else if (action.work != StageWork::kBackwardWeight) {
      done.input = true;
    }
  }

  std::optional<ScheduleProblem> find_circle() {
    for (auto& of_stage : done_) of_stage.assign(of_stage.size(), {});
    const auto& ranks = schedule_.ranks;
    std::vector<size_t> next(ranks.size(), 0);
    for (bool progress = true; progress;) {
      progress = false;
      for (size_t rank = 0; rank < ranks.size(); ++rank) {
        while (next[rank] < ranks[rank].size()) {
          const size_t count = runnable(ranks[rank], next[rank]);
          if (count == 0) break;
          for (size_t i = 0; i < count; ++i) run_action(ranks[rank][next[rank]++]);
          progress = true;
        }
      }
    }
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      if (next[rank] == ranks[rank].size()) continue;
      size_t index = next[rank];
      if (is_ready(ranks[rank][index])) ++index;  // the second of a pair waits
      const StageAction input = *input_of(ranks[rank][index]);
      return problem(rank, index,
                     message("waits for ever for ", to_string(input), " of rank ",
                             schedule_.rank_of_stage[input.stage],
                             ", which itself waits for this rank"));
    }
    return std::nullopt;
  }

  const Schedule& schedule_;
  const bool training_;
  std::vector<std::vector<Done>> done_;  // [stage][microbatch]
};

}  // namespace

std::string to_string(const StageAction& action) {
  const char letter = "FBIW"[static_cast<int>(action.work)];
  return message(action.stage, letter, action.microbatch);
}

std::optional<ScheduleProblem> find_problem(const Schedule& schedule,
                                            ProgramKind kind) {
  return Replay(schedule, kind).run();
}

void check(const Schedule& schedule, ProgramKind kind) {
  const auto problem = find_problem(schedule, kind);
  if (!problem) return;
  const auto& actions = schedule.ranks.at(problem->rank);
  const auto index = static_cast<size_t>(problem->index);
  throw std::invalid_argument(
      message("schedule, rank ", problem->rank, ", action ", index, " (",
              index < actions.size() ? to_string(actions[index]) : "the end",
              "): ", problem->what));
}

}  // namespace torchtitan::plan::schedules
