#include "plan/passes/transfers.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "base/errors.h"

namespace torchtitan::plan::passes {
namespace {

using schedules::Schedule;
using schedules::StageAction;
using schedules::StageWork;

bool makes_input_gradient(StageWork work) {
  return work == StageWork::kBackward || work == StageWork::kBackwardInput;
}

ActionKind kind_of(StageWork work) {
  switch (work) {
    case StageWork::kForward: return ActionKind::kForward;
    case StageWork::kBackward: return ActionKind::kBackward;
    case StageWork::kBackwardInput: return ActionKind::kBackwardInput;
    case StageWork::kBackwardWeight: return ActionKind::kBackwardWeight;
  }
  throw std::logic_error("kind_of: not a StageWork");
}

ProgramKind kind_of(const Schedule& schedule) {
  for (const auto& actions : schedule.ranks) {
    for (const StageAction& action : actions) {
      if (action.work != StageWork::kForward) return ProgramKind::kTraining;
    }
  }
  return ProgramKind::kForwardOnly;
}

// An action or a pair that runs together, and what is placed around it.
struct Unit {
  Program receives;  // starts, before the Waits
  Program receive_waits;
  Program send_waits;
  Program work;
  Program sends;
  // For each rank, the last of its units that is known to have begun when this one
  // begins; -1: none.
  std::vector<int64_t> known;
};

struct Message {
  Action send;
  Action receive;
  int64_t made_by;    // unit of the sender
  int64_t needed_by;  // unit of the receiver
};

using Channel = std::pair<int64_t, int64_t>;  // from rank, to rank

class TransferPass {
 public:
  TransferPass(const Schedule& schedule, int64_t depth)
      : schedule_(schedule), depth_(depth), ranks_(schedule.ranks.size()) {}

  std::vector<Program> run() {
    for (size_t rank = 0; rank < ranks_.size(); ++rank) make_units(rank);
    for (size_t rank = 0; rank < ranks_.size(); ++rank) find_messages(rank);
    for (const auto& [channel, messages] : channels_) {
      place_receives(ranks_[channel.second], messages);
    }
    find_known();
    std::vector<Program> programs(ranks_.size());
    std::vector<Program> last_waits(ranks_.size());
    for (const auto& [channel, messages] : channels_) {
      place_send_waits(channel, messages, last_waits[channel.first]);
    }
    for (size_t rank = 0; rank < ranks_.size(); ++rank) {
      programs[rank] = join(ranks_[rank], last_waits[rank]);
    }
    return programs;
  }

 private:
  using Work = std::tuple<bool, int64_t, int64_t>;  // is forward, stage, microbatch

  void make_units(size_t rank) {
    std::vector<Unit>& units = ranks_[rank];
    bool joins = false;
    for (const StageAction& action : schedule_.ranks[rank]) {
      if (!joins) units.emplace_back();
      joins = action.overlaps_next;
      units.back().work.push_back({.kind = kind_of(action.work),
                                   .stage = action.stage,
                                   .microbatch = action.microbatch,
                                   .overlaps_next = action.overlaps_next});
      if (action.work == StageWork::kBackwardWeight) continue;
      unit_of_[{action.work == StageWork::kForward, action.stage, action.microbatch}] =
          static_cast<int64_t>(units.size()) - 1;
    }
  }

  void find_messages(size_t rank) {
    for (const StageAction& action : schedule_.ranks[rank]) {
      const bool forward = action.work == StageWork::kForward;
      if (!forward && !makes_input_gradient(action.work)) continue;
      const int64_t peer_stage = action.stage + (forward ? 1 : -1);
      if (peer_stage < 0 || peer_stage >= schedule_.num_stages()) continue;
      const auto from = static_cast<int64_t>(rank);
      const int64_t to = schedule_.rank_of_stage[peer_stage];
      if (from == to) continue;
      const Message message{
          .send = {.kind = forward ? ActionKind::kSendActivation
                                   : ActionKind::kSendGradient,
                   .stage = action.stage,
                   .microbatch = action.microbatch},
          .receive = {.kind = forward ? ActionKind::kReceiveActivation
                                      : ActionKind::kReceiveGradient,
                      .stage = peer_stage,
                      .microbatch = action.microbatch},
          .made_by = unit_of_.at({forward, action.stage, action.microbatch}),
          .needed_by = unit_of_.at({forward, peer_stage, action.microbatch})};
      channels_[{from, to}].push_back(message);
      ranks_[from][message.made_by].sends.push_back(message.send);
      ranks_[to][message.needed_by].receive_waits.push_back(wait_for(message.receive));
      sources_[{to, message.needed_by}].emplace_back(from, message.made_by);
    }
  }

  // The first unit at which this or a later message of the channel matters.
  template <class Position>
  static std::vector<int64_t> first_from_here(const std::vector<Message>& messages,
                                              const Position& position) {
    std::vector<int64_t> firsts(messages.size());
    for (size_t i = messages.size(); i-- > 0;) {
      firsts[i] = position(messages[i]);
      if (i + 1 < messages.size()) firsts[i] = std::min(firsts[i], firsts[i + 1]);
    }
    return firsts;
  }

  void place_receives(std::vector<Unit>& units, const std::vector<Message>& messages) {
    const auto starts = first_from_here(messages, [&](const Message& message) {
      return std::max<int64_t>(0, message.needed_by - depth_);
    });
    for (size_t i = 0; i < messages.size(); ++i) {
      units[starts[i]].receives.push_back(messages[i].receive);
    }
  }

  bool is_known(int64_t rank, int64_t unit) const {
    return !ranks_[rank][unit].known.empty();
  }

  bool can_find_known(int64_t rank, int64_t unit) const {
    const auto sources = sources_.find({rank, unit});
    return sources == sources_.end() ||
           std::all_of(sources->second.begin(), sources->second.end(),
                       [&](const auto& source) {
                         return is_known(source.first, source.second);
                       });
  }

  // What a rank knows when it begins a unit: what it knew before, and what the senders
  // of the messages it waited for knew when they sent them.
  void find_known_of(int64_t rank, int64_t unit) {
    std::vector<int64_t> known = unit > 0 ? ranks_[rank][unit - 1].known
                                          : std::vector<int64_t>(ranks_.size(), -1);
    if (const auto sources = sources_.find({rank, unit}); sources != sources_.end()) {
      for (const auto& [from, made_by] : sources->second) {
        const std::vector<int64_t>& theirs = ranks_[from][made_by].known;
        for (size_t i = 0; i < known.size(); ++i) {
          known[i] = std::max(known[i], theirs[i]);
        }
      }
    }
    known[rank] = unit;
    ranks_[rank][unit].known = std::move(known);
  }

  void find_known() {
    std::vector<int64_t> next(ranks_.size(), 0);
    for (bool progress = true; progress;) {
      progress = false;
      for (size_t rank = 0; rank < ranks_.size(); ++rank) {
        while (next[rank] < static_cast<int64_t>(ranks_[rank].size()) &&
               can_find_known(rank, next[rank])) {
          find_known_of(rank, next[rank]++);
          progress = true;
        }
      }
    }
  }

  void place_send_waits(const Channel& channel, const std::vector<Message>& messages,
                        Program& last_waits) {
    // A message has arrived when a later one of its channel has.
    const auto arrivals = first_from_here(
        messages, [](const Message& message) { return message.needed_by; });
    std::vector<Unit>& units = ranks_[channel.first];
    size_t unit = 0;
    for (size_t i = 0; i < messages.size(); ++i) {
      while (unit < units.size() && units[unit].known[channel.second] < arrivals[i]) {
        ++unit;
      }
      Program& waits = unit < units.size() ? units[unit].send_waits : last_waits;
      waits.push_back(wait_for(messages[i].send));
    }
  }

  static Program join(const std::vector<Unit>& units, const Program& last_waits) {
    Program program;
    const auto append = [&](const Program& part) {
      program.insert(program.end(), part.begin(), part.end());
    };
    for (const Unit& unit : units) {
      append(unit.receives);
      append(unit.receive_waits);
      append(unit.send_waits);
      append(unit.work);
      append(unit.sends);
    }
    append(last_waits);
    return program;
  }

  const Schedule& schedule_;
  const int64_t depth_;
  std::vector<std::vector<Unit>> ranks_;
  std::map<Work, int64_t> unit_of_;
  std::map<Channel, std::vector<Message>> channels_;  // in the order of the sends
  // For a rank and unit: the ranks and units that made the messages it needs.
  using Place = std::pair<int64_t, int64_t>;  // rank, unit
  std::map<Place, std::vector<Place>> sources_;
};

}  // namespace

std::vector<Program> add_transfers(const Schedule& schedule, int64_t depth) {
  base::check_value(depth >= 0, "add_transfers: the depth must be at least 0, got ",
                    depth);
  schedules::check(schedule, kind_of(schedule));
  return TransferPass(schedule, depth).run();
}

}  // namespace torchtitan::plan::passes
