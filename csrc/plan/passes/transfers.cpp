#include "plan/passes/transfers.h"

#include <algorithm>
#include <array>
#include <numeric>

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

// What is placed around a unit: an action, or a pair that runs together. In this order.
enum Slot { kReceives, kReceiveWaits, kSendWaits, kWork, kSends, kNumSlots };

struct Placed {
  int64_t unit;
  Slot slot;
  Action action;
};

struct Place {
  int64_t rank = -1;
  int64_t unit = -1;
};

struct Message {
  Action send;
  Action receive;
  int64_t made_by;    // unit of the sender
  int64_t needed_by;  // unit of the receiver
};

struct Rank {
  std::vector<Placed> placed;
  // By unit, the places that made the messages it needs: at most one for each of its
  // actions.
  std::vector<std::array<Place, 2>> sources;
  // By unit and rank, the last unit of that rank that is known to have begun when this
  // unit begins; -1: none.
  std::vector<int64_t> known;
  int64_t num_known = 0;  // units of which that is found

  int64_t num_units() const { return static_cast<int64_t>(sources.size()); }
};

class TransferPass {
 public:
  TransferPass(const Schedule& schedule, int64_t depth)
      : schedule_(schedule), depth_(depth),
        num_ranks_(static_cast<int64_t>(schedule.ranks.size())), ranks_(num_ranks_),
        channels_(num_ranks_ * num_ranks_) {
    for (auto& units : unit_of_) {
      units.resize(schedule.num_stages() * schedule.num_microbatches);
    }
  }

  std::vector<Program> run() {
    for (int64_t rank = 0; rank < num_ranks_; ++rank) place_work(rank);
    for (int64_t rank = 0; rank < num_ranks_; ++rank) find_messages(rank);
    find_known();
    for (int64_t from = 0; from < num_ranks_; ++from) {
      for (int64_t to = 0; to < num_ranks_; ++to) {
        place_receives(ranks_[to], channel(from, to));
        place_send_waits(ranks_[from], to, channel(from, to));
      }
    }
    std::vector<Program> programs;
    for (const Rank& rank : ranks_) programs.push_back(join(rank));
    return programs;
  }

 private:
  std::vector<Message>& channel(int64_t from, int64_t to) {
    return channels_[from * num_ranks_ + to];
  }

  int64_t& unit_of(bool forward, int64_t stage, int64_t microbatch) {
    return unit_of_[forward ? 1 : 0][stage * schedule_.num_microbatches + microbatch];
  }

  void place_work(int64_t rank) {
    Rank& own = ranks_[rank];
    bool joins = false;
    for (const StageAction& action : schedule_.ranks[rank]) {
      if (!joins) own.sources.emplace_back();
      joins = action.overlaps_next;
      const int64_t unit = own.num_units() - 1;
      own.placed.push_back({unit,
                            kWork,
                            {.kind = kind_of(action.work),
                             .stage = action.stage,
                             .microbatch = action.microbatch,
                             .overlaps_next = action.overlaps_next}});
      if (action.work == StageWork::kBackwardWeight) continue;
      unit_of(action.work == StageWork::kForward, action.stage, action.microbatch) =
          unit;
    }
    own.known.assign(own.num_units() * num_ranks_, -1);
    own.placed.reserve(5 * schedule_.ranks[rank].size());  // most have two messages
  }

  void find_messages(int64_t from) {
    for (const StageAction& action : schedule_.ranks[from]) {
      const bool forward = action.work == StageWork::kForward;
      if (!forward && !makes_input_gradient(action.work)) continue;
      const int64_t peer_stage = action.stage + (forward ? 1 : -1);
      if (peer_stage < 0 || peer_stage >= schedule_.num_stages()) continue;
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
          .made_by = unit_of(forward, action.stage, action.microbatch),
          .needed_by = unit_of(forward, peer_stage, action.microbatch)};
      channel(from, to).push_back(message);
      ranks_[from].placed.push_back({message.made_by, kSends, message.send});
      ranks_[to].placed.push_back(
          {message.needed_by, kReceiveWaits, wait_for(message.receive)});
      ranks_[to].sources[message.needed_by][forward ? 0 : 1] = {from, message.made_by};
    }
  }

  // For each message the first unit at which it or a later one of its channel matters.
  template <class UnitOf>
  static std::vector<int64_t> first_from_here(const std::vector<Message>& messages,
                                              const UnitOf& unit_of) {
    std::vector<int64_t> firsts(messages.size());
    for (size_t i = messages.size(); i-- > 0;) {
      firsts[i] = unit_of(messages[i]);
      if (i + 1 < messages.size()) firsts[i] = std::min(firsts[i], firsts[i + 1]);
    }
    return firsts;
  }

  void place_receives(Rank& receiver, const std::vector<Message>& messages) const {
    const auto starts = first_from_here(messages, [&](const Message& message) {
      return std::max<int64_t>(0, message.needed_by - depth_);
    });
    for (size_t i = 0; i < messages.size(); ++i) {
      receiver.placed.push_back({starts[i], kReceives, messages[i].receive});
    }
  }

  void place_send_waits(Rank& sender, int64_t to,
                        const std::vector<Message>& messages) const {
    // A message has arrived when a later one of its channel has.
    const auto arrivals = first_from_here(
        messages, [](const Message& message) { return message.needed_by; });
    int64_t unit = 0;
    for (size_t i = 0; i < messages.size(); ++i) {
      while (unit < sender.num_units() &&
             sender.known[unit * num_ranks_ + to] < arrivals[i]) {
        ++unit;
      }
      sender.placed.push_back({unit, kSendWaits, wait_for(messages[i].send)});
    }
  }

  bool can_find_known(const Rank& own) const {
    if (own.num_known == own.num_units()) return false;
    const auto& sources = own.sources[own.num_known];
    return std::all_of(sources.begin(), sources.end(), [&](const Place& source) {
      return source.rank < 0 || source.unit < ranks_[source.rank].num_known;
    });
  }

  // What a rank knows when it begins a unit: what it knew before, and what the senders
  // of the messages it waited for knew when they made them.
  void find_known_of_next(int64_t rank) {
    Rank& own = ranks_[rank];
    const int64_t unit = own.num_known++;
    int64_t* const known = own.known.data() + unit * num_ranks_;
    if (unit > 0) std::copy_n(known - num_ranks_, num_ranks_, known);
    for (const Place& source : own.sources[unit]) {
      if (source.rank < 0) continue;
      const int64_t* const theirs =
          ranks_[source.rank].known.data() + source.unit * num_ranks_;
      for (int64_t i = 0; i < num_ranks_; ++i) known[i] = std::max(known[i], theirs[i]);
    }
    known[rank] = unit;
  }

  void find_known() {
    for (bool progress = true; progress;) {
      progress = false;
      for (int64_t rank = 0; rank < num_ranks_; ++rank) {
        while (can_find_known(ranks_[rank])) {
          find_known_of_next(rank);
          progress = true;
        }
      }
    }
  }

  // By unit and slot, in each in the order of placing. Waits of sends that nothing
  // tells the sender about come after the last unit.
  static Program join(const Rank& rank) {
    const auto position = [](const Placed& placed) {
      return placed.unit * kNumSlots + placed.slot;
    };
    std::vector<int64_t> next((rank.num_units() + 1) * kNumSlots + 1, 0);
    for (const Placed& placed : rank.placed) ++next[position(placed) + 1];
    std::partial_sum(next.begin(), next.end(), next.begin());
    Program program(rank.placed.size());
    for (const Placed& placed : rank.placed) {
      program[next[position(placed)]++] = placed.action;
    }
    return program;
  }

  const Schedule& schedule_;
  const int64_t depth_;
  const int64_t num_ranks_;
  std::vector<Rank> ranks_;
  std::vector<std::vector<Message>> channels_;  // [from * num_ranks + to], as sent
  // [is forward][stage * num_microbatches + microbatch]: which unit of its rank
  std::array<std::vector<int64_t>, 2> unit_of_;
};

}  // namespace

std::vector<Program> add_transfers(const Schedule& schedule, int64_t depth) {
  base::check_value(depth >= 0, "add_transfers: the depth must be at least 0, got ",
                    depth);
  schedules::check(schedule, kind_of(schedule));
  return TransferPass(schedule, depth).run();
}

}  // namespace torchtitan::plan::passes
