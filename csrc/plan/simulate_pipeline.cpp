#include "plan/simulate_pipeline.h"

#include <algorithm>
#include <utility>

#include "base/errors.h"
#include "plan/message_clock.h"

namespace torchtitan::plan {
namespace {

using base::check_value;

class Clock {
 public:
  Clock(std::span<const Program> programs, std::span<const StageCost> stages,
        const std::optional<Link>& link)
      : programs_(programs), stages_(stages), link_(link), next_(programs.size(), 0),
        now_(programs.size(), 0.0), live_(programs.size(), 0),
        has_worked_(programs.size(), false), messages_(programs, "simulate_pipeline") {
    for (const StageCost& stage : stages) {
      for (const double value :
           {stage.forward_seconds, stage.backward_seconds, stage.backward_input_seconds,
            stage.backward_weight_seconds, stage.output_bytes}) {
        check_value(value >= 0.0,
                    "simulate_pipeline: a stage has a negative time or "
                    "size: ",
                    value);
      }
    }
    check_value(!link || (link->bytes_per_second > 0.0 && link->latency_seconds >= 0.0),
                "simulate_pipeline: a link needs a positive rate and no negative "
                "latency");
    for (const Program& program : programs) {
      result_.spans.emplace_back(program.size(), Span{0.0, 0.0});
      result_.ranks.push_back({0.0, 0.0, 0.0, 0});
    }
  }

  PipelineSimulation run() {
    for (bool progress = true; progress;) {
      progress = false;
      for (size_t rank = 0; rank < programs_.size(); ++rank) {
        while (next_[rank] < programs_[rank].size() && step(rank)) progress = true;
      }
    }
    for (size_t rank = 0; rank < programs_.size(); ++rank) {
      check_value(next_[rank] == programs_[rank].size(), "simulate_pipeline: rank ",
                  rank, " waits for ever in action ", next_[rank]);
    }
    fill_message_spans();
    result_.seconds = 0.0;
    for (const double end : now_) result_.seconds = std::max(result_.seconds, end);
    return std::move(result_);
  }

 private:
  bool step(size_t rank) {
    const Action& action = programs_[rank][next_[rank]];
    double& now = now_[rank];
    Span& span = result_.spans[rank][next_[rank]];
    span = {now, now};
    if (is_transfer(action)) {
      messages_.start(action, now, message_seconds(action));
    } else if (action.kind == ActionKind::kWait) {
      const auto passed = messages_.passed(action);
      if (!passed) return false;
      span.end = now = std::max(now, passed->end);
    } else {
      compute(rank, action, span);
    }
    ++next_[rank];
    return true;
  }

  double message_seconds(const Action& transfer) const {
    if (!link_) return 0.0;
    const bool back = transfer.kind == ActionKind::kSendGradient ||
                      transfer.kind == ActionKind::kReceiveActivation;
    const auto stage = static_cast<size_t>(transfer.stage - (back ? 1 : 0));
    return link_->latency_seconds +
           stages_[stage].output_bytes / link_->bytes_per_second;
  }

  void compute(size_t rank, const Action& action, Span& span) {
    RankUse& use = result_.ranks[rank];
    const double seconds = seconds_of(action);
    if (!has_worked_[rank]) use.first_begin = span.begin;
    has_worked_[rank] = true;
    span.end = now_[rank] = span.begin + seconds;
    use.compute_seconds += seconds;
    use.last_end = span.end;
    if (action.kind == ActionKind::kForward) {
      use.peak_live = std::max(use.peak_live, ++live_[rank]);
    } else if (action.kind != ActionKind::kBackwardInput) {
      --live_[rank];
    }
  }

  double seconds_of(const Action& action) const {
    const auto stage = static_cast<size_t>(action.stage);
    check_value(stage < stages_.size(), "simulate_pipeline: ", to_string(action),
                " is of none of the ", stages_.size(), " stages");
    const StageCost& cost = stages_[stage];
    switch (action.kind) {
      case ActionKind::kForward: return cost.forward_seconds;
      case ActionKind::kBackward: return cost.backward_seconds;
      case ActionKind::kBackwardInput: return cost.backward_input_seconds;
      case ActionKind::kBackwardWeight: return cost.backward_weight_seconds;
      default:
        throw std::invalid_argument(base::message(
            "simulate_pipeline: ", to_string(action), " is no action of a stage"));
    }
  }

  void fill_message_spans() {
    for (size_t rank = 0; rank < programs_.size(); ++rank) {
      for (size_t i = 0; i < programs_[rank].size(); ++i) {
        const Action& action = programs_[rank][i];
        if (!is_transfer(action)) continue;
        const auto passed = messages_.passed(action);
        check_value(passed.has_value(), "simulate_pipeline: rank ", rank,
                    ": nobody receives ", to_string(action));
        result_.spans[rank][i] = *passed;
      }
    }
  }

  const std::span<const Program> programs_;
  const std::span<const StageCost> stages_;
  const std::optional<Link> link_;
  std::vector<size_t> next_;
  std::vector<double> now_;
  std::vector<int64_t> live_;
  std::vector<bool> has_worked_;
  MessageClock messages_;
  PipelineSimulation result_{};
};

double share(double part, double whole) { return whole > 0.0 ? part / whole : 0.0; }

}  // namespace

double RankUse::idle_share() const {
  const double span = last_end - first_begin;
  return share(span - compute_seconds, span);
}

double PipelineSimulation::bubble() const {
  double busy = 0.0;
  for (const RankUse& rank : ranks) busy += rank.compute_seconds;
  const double all = seconds * static_cast<double>(ranks.size());
  return share(all - busy, all);
}

double PipelineSimulation::bubble(int64_t rank) const {
  return share(seconds - ranks.at(rank).compute_seconds, seconds);
}

PipelineSimulation simulate_pipeline(std::span<const Program> programs,
                                     std::span<const StageCost> stages,
                                     const std::optional<Link>& link) {
  return Clock(programs, stages, link).run();
}

}  // namespace torchtitan::plan
