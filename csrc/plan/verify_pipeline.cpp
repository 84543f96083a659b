#include "plan/verify_pipeline.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <utility>

#include "base/errors.h"

namespace torchtitan::plan {
namespace {

using base::message;

constexpr std::array kTransfers{
    ActionKind::kSendActivation, ActionKind::kReceiveActivation,
    ActionKind::kSendGradient, ActionKind::kReceiveGradient};

size_t index_of(ActionKind transfer) {
  return std::find(kTransfers.begin(), kTransfers.end(), transfer) - kTransfers.begin();
}

enum class Flight : uint8_t { kNotStarted, kUnderWay, kDone };

// An action for the text of an error, put into words only when there is one.
struct Named {
  ActionKind kind;
  int64_t stage;
  int64_t microbatch;
};

std::ostream& operator<<(std::ostream& out, const Named& named) {
  const auto& [kind, stage, microbatch] = named;
  return out << to_string(
             Action{.kind = kind, .stage = stage, .microbatch = microbatch});
}

// What has happened to one stage on one microbatch.
struct Work {
  bool forward = false;
  bool input_gradient = false;
  bool weight_gradient = false;
  std::array<Flight, kTransfers.size()> flights{};
};

// An action of a program.
struct Place {
  int64_t rank;
  size_t index;
};

class Replay {
 public:
  Replay(std::span<const Program> programs, const PipelineShape& shape,
         ProgramKind kind)
      : programs_(programs), shape_(shape), training_(kind == ProgramKind::kTraining),
        num_stages_(static_cast<int64_t>(shape.rank_of_stage.size())),
        work_(num_stages_ * shape.num_microbatches) {}

  void run() {
    for (rank_ = 0; rank_ < num_ranks(); ++rank_) run_rank();
    check_all_done();
    match_channels();
    run_together();
  }

 private:
  int64_t num_ranks() const { return static_cast<int64_t>(programs_.size()); }

  [[noreturn]] void fail(const std::string& what) const {
    const Program& program = programs_[rank_];
    const std::string text =
        index_ < program.size() ? to_string(program[index_]) : "the end";
    throw std::invalid_argument(message("pipeline programs, rank ", rank_, ", action ",
                                        index_, " (", text, "): ", what));
  }

  template <class... Parts>
  void require(bool holds, const Parts&... parts) const {
    if (!holds) fail(message(parts...));
  }

  Work& work_of(int64_t stage, int64_t microbatch) {
    return work_[stage * shape_.num_microbatches + microbatch];
  }

  bool is_here(int64_t stage) const { return shape_.rank_of_stage[stage] == rank_; }

  // Each rank by itself, first to last.

  void run_rank() {
    const Program& program = programs_[rank_];
    num_live_ = 0;
    for (index_ = 0; index_ < program.size(); ++index_) {
      const Action& action = program[index_];
      check_fields(action);
      if (action.kind == ActionKind::kWait) {
        wait(action);
      } else if (is_transfer(action)) {
        start(action);
      } else {
        compute(action);
      }
    }
  }

  void check_fields(const Action& action) const {
    const bool waits = action.kind == ActionKind::kWait;
    const Action named{.kind = waits ? action.waits_for : action.kind};
    require(waits == (action.waits_for != ActionKind::kWait),
            "waits_for belongs to a Wait and names the kind of its start");
    require(is_transfer(named) ||
                (!waits && is_compute(named) && named.kind != ActionKind::kRecompute),
            "is no action of a stage");
    require(training_ || named.kind == ActionKind::kForward ||
                named.kind == ActionKind::kSendActivation ||
                named.kind == ActionKind::kReceiveActivation,
            "has no place in a program without backward");
    require(action.segment == -1 && action.group == -1, "names a segment or a group");
    check_index("stage", action.stage, num_stages_);
    check_index("microbatch", action.microbatch, shape_.num_microbatches);
    require(is_here(action.stage), "stage ", action.stage, " is on rank ",
            shape_.rank_of_stage[action.stage]);
    require(!action.overlaps_next || is_pair(),
            "only a Forward and the backward of another microbatch right after it can "
            "run together");
  }

  void check_index(const char* what, int64_t index, int64_t count) const {
    require(index >= 0 && index < count, "expected a ", what, " below ", count,
            ", found ", index);
  }

  bool is_pair() const {
    const Program& program = programs_[rank_];
    if (program[index_].kind != ActionKind::kForward) return false;
    if (index_ + 1 == program.size()) return false;
    const Action& next = program[index_ + 1];
    return (next.kind == ActionKind::kBackward ||
            next.kind == ActionKind::kBackwardInput) &&
           next.microbatch != program[index_].microbatch;
  }

  void compute(const Action& action) {
    Work& work = work_of(action.stage, action.microbatch);
    switch (action.kind) {
      case ActionKind::kForward:
        require(!work.forward, "has run already");
        check_needed(action.stage - 1, action, ActionKind::kReceiveActivation);
        work.forward = true;
        check_bound();
        return;
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
        require(work.forward, "comes before its Forward");
        require(!work.input_gradient, "has run already");
        check_needed(action.stage + 1, action, ActionKind::kReceiveGradient);
        work.input_gradient = true;
        if (action.kind == ActionKind::kBackward) finish(work);
        return;
      default:
        require(work.input_gradient, "comes before its BackwardInput");
        require(!work.weight_gradient, "has run already");
        finish(work);
        return;
    }
  }

  void finish(Work& work) {
    work.weight_gradient = true;
    --num_live_;
  }

  void check_bound() {
    ++num_live_;
    if (!training_ || shape_.live_bounds.empty()) return;
    require(num_live_ <= shape_.live_bounds[rank_], "has ", num_live_,
            " live activations, and the schedule promises at most ",
            shape_.live_bounds[rank_]);
  }

  // That the outputs or gradients of `neighbour` are on this rank.
  void check_needed(int64_t neighbour, const Action& action, ActionKind receive) {
    if (neighbour < 0 || neighbour >= num_stages_) return;
    const bool forward = receive == ActionKind::kReceiveActivation;
    if (is_here(neighbour)) {
      const Work& work = work_of(neighbour, action.microbatch);
      require(forward ? work.forward : work.input_gradient, "needs stage ", neighbour,
              ", which has not run");
      return;
    }
    const Work& work = work_of(action.stage, action.microbatch);
    require(work.flights[index_of(receive)] == Flight::kDone, "needs ",
            Named{receive, action.stage, action.microbatch},
            ", which has not been waited for");
  }

  static bool is_send(ActionKind kind) {
    return kind == ActionKind::kSendActivation || kind == ActionKind::kSendGradient;
  }

  // The stage at the other end of a message.
  static int64_t peer_stage(const Action& action) {
    const bool up = action.kind == ActionKind::kSendActivation ||
                    action.kind == ActionKind::kReceiveGradient;
    return action.stage + (up ? 1 : -1);
  }

  void start(const Action& action) {
    const int64_t peer = peer_stage(action);
    require(peer >= 0 && peer < num_stages_, "there is no stage ", peer);
    require(!is_here(peer), "stage ", peer, " is on the same rank");
    Work& work = work_of(action.stage, action.microbatch);
    Flight& flight = work.flights[index_of(action.kind)];
    require(flight == Flight::kNotStarted, "has been started already");
    if (action.kind == ActionKind::kSendActivation) {
      require(work.forward, "comes before its Forward");
    } else if (action.kind == ActionKind::kSendGradient) {
      require(work.input_gradient, "comes before its backward");
    }
    flight = Flight::kUnderWay;
    const int64_t other = shape_.rank_of_stage[peer];
    if (is_send(action.kind)) {
      channels_[{rank_, other}].sends.push_back(index_);
    } else {
      channels_[{other, rank_}].receives.push_back(index_);
    }
  }

  void wait(const Action& action) {
    Work& work = work_of(action.stage, action.microbatch);
    Flight& flight = work.flights[index_of(action.waits_for)];
    require(flight == Flight::kUnderWay, "nothing was started that this waits for");
    flight = Flight::kDone;
  }

  void check_all_done() {
    for (int64_t stage = 0; stage < num_stages_; ++stage) {
      for (int64_t m = 0; m < shape_.num_microbatches; ++m) {
        const Work& work = work_of(stage, m);
        rank_ = shape_.rank_of_stage[stage];
        index_ = programs_[rank_].size();
        const auto missing = [&](ActionKind kind) {
          fail(to_string(Action{.kind = kind, .stage = stage, .microbatch = m}) +
               " is missing");
        };
        if (!work.forward) missing(ActionKind::kForward);
        if (training_ && !work.input_gradient) missing(ActionKind::kBackward);
        if (training_ && !work.weight_gradient) missing(ActionKind::kBackwardWeight);
        for (size_t i = 0; i < kTransfers.size(); ++i) {
          require(work.flights[i] != Flight::kUnderWay, "nobody waits for ",
                  Named{kTransfers[i], stage, m});
        }
      }
    }
  }

  // All ranks together.

  struct Channel {
    std::vector<size_t> sends;     // indices in the program of the sender
    std::vector<size_t> receives;  // and of the receiver
  };

  // Pairs each send with its receive by their order.
  void match_channels() {
    for (int64_t rank = 0; rank < num_ranks(); ++rank) {
      ends_.emplace_back(programs_[rank].size());
    }
    for (const auto& [ranks, channel] : channels_) {
      const auto& [from, to] = ranks;
      const auto& [sends, receives] = channel;
      for (size_t i = 0; i < std::max(sends.size(), receives.size()); ++i) {
        rank_ = i < sends.size() ? from : to;
        index_ = i < sends.size() ? sends[i] : receives[i];
        require(i < receives.size(), "rank ", to, " never receives it");
        require(i < sends.size(), "rank ", from, " never sends it");
        rank_ = to;
        index_ = receives[i];
        check_match(programs_[from][sends[i]], from);
        ends_[from][sends[i]] = {to, receives[i]};
        ends_[to][receives[i]] = {from, sends[i]};
      }
    }
  }

  void check_match(const Action& send, int64_t from) const {
    const Action& receive = programs_[rank_][index_];
    const bool forward = send.kind == ActionKind::kSendActivation;
    const bool same_kind = forward == (receive.kind == ActionKind::kReceiveActivation);
    require(same_kind && peer_stage(send) == receive.stage &&
                send.microbatch == receive.microbatch,
            "meets ", Named{send.kind, send.stage, send.microbatch}, " of rank ", from,
            ", by their order");
  }

  // Whether the other end of the message of a Wait has started.
  bool may_pass(int64_t rank, const Action& action, const std::vector<size_t>& next) {
    if (action.kind != ActionKind::kWait) return true;
    const Place& end = ends_[rank][start_of(action)];
    return next[end.rank] > end.index;
  }

  // The index of a start, by itself or its Wait.
  size_t& start_of(const Action& action) {
    const ActionKind kind =
        action.kind == ActionKind::kWait ? action.waits_for : action.kind;
    return starts_[action.stage * shape_.num_microbatches + action.microbatch]
                  [index_of(kind)];
  }

  void run_together() {
    starts_.assign(work_.size(), {});
    std::vector<size_t> next(programs_.size(), 0);
    for (bool progress = true; progress;) {
      progress = false;
      for (int64_t rank = 0; rank < num_ranks(); ++rank) {
        const Program& program = programs_[rank];
        size_t& index = next[rank];
        while (index < program.size() && may_pass(rank, program[index], next)) {
          if (is_transfer(program[index])) start_of(program[index]) = index;
          ++index;
          progress = true;
        }
      }
    }
    for (rank_ = 0; rank_ < num_ranks(); ++rank_) {
      index_ = next[rank_];
      const Program& program = programs_[rank_];
      if (index_ == program.size()) continue;
      const Place& end = ends_[rank_][start_of(program[index_])];
      fail(message("waits for ever for ", to_string(programs_[end.rank][end.index]),
                   " of rank ", end.rank, ", which itself waits for this rank"));
    }
  }

  const std::span<const Program> programs_;
  const PipelineShape& shape_;
  const bool training_;
  const int64_t num_stages_;
  std::vector<Work> work_;  // [stage * num_microbatches + microbatch]
  std::map<std::pair<int64_t, int64_t>, Channel> channels_;  // by sender, receiver
  std::vector<std::vector<Place>> ends_;  // [rank][index]: of a start, its other end
  std::vector<std::array<size_t, kTransfers.size()>> starts_;  // as work_, by transfer
  int64_t num_live_ = 0;
  int64_t rank_ = 0;
  size_t index_ = 0;
};

void check_shape(std::span<const Program> programs, const PipelineShape& shape) {
  using base::check_value;
  const auto num_ranks = static_cast<int64_t>(programs.size());
  check_value(shape.num_microbatches >= 1,
              "verify_pipeline: needs at least 1 microbatch, got ",
              shape.num_microbatches);
  check_value(!shape.rank_of_stage.empty(), "verify_pipeline: there is no stage");
  for (size_t stage = 0; stage < shape.rank_of_stage.size(); ++stage) {
    const int64_t rank = shape.rank_of_stage[stage];
    check_value(rank >= 0 && rank < num_ranks, "verify_pipeline: stage ", stage,
                " is on rank ", rank, ", and there are programs of ", num_ranks);
  }
  check_value(shape.live_bounds.empty() || shape.live_bounds.size() == programs.size(),
              "verify_pipeline: got bounds for ", shape.live_bounds.size(),
              " ranks and programs of ", num_ranks);
}

}  // namespace

void verify_pipeline(std::span<const Program> programs, const PipelineShape& shape,
                     ProgramKind kind) {
  check_shape(programs, shape);
  Replay(programs, shape, kind).run();
}

}  // namespace torchtitan::plan
