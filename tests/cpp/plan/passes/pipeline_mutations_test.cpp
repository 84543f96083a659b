// The verifier of pipelines against ranks that really run: state machines with memory,
// joined by channels that know only the order of messages, calculating on numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <regex>

#include "plan/passes/transfers.h"
#include "plan/schedules/forward_only.h"
#include "plan/schedules/registry.h"
#include "plan/verify_pipeline.h"

namespace torchtitan::plan::passes {
namespace {

using Number = uint64_t;  // wraps around: exact, and a wrong one stays wrong
using Key = std::pair<int64_t, int64_t>;  // stage, microbatch

Number weight(int64_t stage) { return 2 * static_cast<Number>(stage) + 3; }
Number data(int64_t microbatch) { return 1000 + 77 * static_cast<Number>(microbatch); }
// Both differ for every stage and microbatch.
Number forward_of(int64_t stage, Number x) { return x * weight(stage) + 1; }
Number backward_of(int64_t stage, Number dy) { return dy * weight(stage); }
Number loss_gradient(int64_t microbatch) { return 5 + static_cast<Number>(microbatch); }

struct Totals {
  std::vector<Number> weight_gradients;  // by stage
  std::vector<Number> outputs;           // by microbatch
  bool operator==(const Totals&) const = default;
};

Totals by_plain_loops(const PipelineShape& shape, bool training) {
  const auto num_stages = static_cast<int64_t>(shape.rank_of_stage.size());
  Totals totals{std::vector<Number>(num_stages, 0), {}};
  for (int64_t m = 0; m < shape.num_microbatches; ++m) {
    std::vector<Number> x{data(m)};
    for (int64_t s = 0; s < num_stages; ++s) x.push_back(forward_of(s, x.back()));
    totals.outputs.push_back(x.back());
    Number dy = loss_gradient(m);
    for (int64_t s = num_stages; training && s-- > 0; dy = backward_of(s, dy)) {
      totals.weight_gradients[s] += dy * x[s];
    }
  }
  return totals;
}

struct Delivery {
  Number value = 0;
  bool complete = false;
};

// A first-in-first-out channel whose messages have no names.
struct Channel {
  std::deque<Delivery*> sends, receives;

  void deliver() {
    while (!sends.empty() && !receives.empty()) {
      receives.front()->value = sends.front()->value;
      receives.front()->complete = sends.front()->complete = true;
      sends.pop_front();
      receives.pop_front();
    }
  }
};

class Pipeline {
 public:
  Pipeline(const std::vector<Program>& programs, const PipelineShape& shape,
           bool training, uint64_t seed)
      : programs_(programs), shape_(shape), training_(training), random_(seed),
        machines_(programs.size()) {
    totals_.weight_gradients.resize(shape.rank_of_stage.size(), 0);
    totals_.outputs.resize(shape.num_microbatches, 0);
  }

  // Whether the ranks finish, whatever they hold is used up, and the sums are right.
  bool works() {
    std::vector<size_t> order(machines_.size());
    for (size_t rank = 0; rank < order.size(); ++rank) order[rank] = rank;
    for (bool progress = true; progress && !broken_;) {
      progress = false;
      std::shuffle(order.begin(), order.end(), random_);
      for (const size_t rank : order) {
        // A few actions at a time: the outcome must not depend on who is fast.
        for (uint64_t i = random_() % 4 + 1; i > 0 && !broken_ && step(rank); --i) {
          progress = true;
        }
      }
    }
    for (size_t rank = 0; rank < machines_.size() && !broken_; ++rank) {
      const Machine& machine = machines_[rank];
      if (machine.next != programs_[rank].size() || !machine.flights.empty() ||
          !machine.inputs.empty() || !machine.gradients.empty() ||
          !machine.outbox.empty() || !machine.halves.empty() ||
          (training_ && !machine.saved.empty())) {
        return false;
      }
    }
    return !broken_ && totals_ == by_plain_loops(shape_, training_);
  }

 private:
  struct Half {
    Number x, dy;
  };

  struct Machine {
    size_t next = 0;
    std::map<Key, Number> inputs, gradients, saved;
    std::map<Key, Half> halves;
    std::map<std::pair<bool, Key>, Number> outbox;  // forward?
    std::map<std::pair<ActionKind, Key>, std::unique_ptr<Delivery>> flights;
  };

  template <class K, class V>
  V take(std::map<K, V>& from, const K& key) {
    const auto found = from.find(key);
    if (found == from.end()) {
      broken_ = true;
      return V{};
    }
    V value = std::move(found->second);
    from.erase(found);
    return value;
  }

  template <class K, class V>
  void put(std::map<K, V>& into, const K& key, V value) {
    if (!into.emplace(key, std::move(value)).second) broken_ = true;
  }

  int64_t last_stage() const {
    return static_cast<int64_t>(shape_.rank_of_stage.size()) - 1;
  }

  // Runs the rank's next action; false if it has none or must wait.
  bool step(size_t rank) {
    Machine& machine = machines_[rank];
    const Program& program = programs_[rank];
    if (machine.next == program.size()) return false;
    const Action& action = program[machine.next];
    const Key key{action.stage, action.microbatch};
    if (shape_.rank_of_stage[action.stage] != static_cast<int64_t>(rank)) {
      return broken_ = true;
    }
    if (action.overlaps_next) check_pair(program, machine.next);
    if (action.kind == ActionKind::kWait) {
      const auto found = machine.flights.find({action.waits_for, key});
      if (found == machine.flights.end()) return broken_ = true;
      if (!found->second->complete) return false;
      const Number value = found->second->value;
      machine.flights.erase(found);
      if (action.waits_for == ActionKind::kReceiveActivation) {
        put(machine.inputs, key, value);
      } else if (action.waits_for == ActionKind::kReceiveGradient) {
        put(machine.gradients, key, value);
      }
    } else if (is_transfer(action)) {
      start(rank, action);
    } else {
      compute(rank, action);
    }
    ++machine.next;
    return true;
  }

  void check_pair(const Program& program, size_t index) {
    if (index + 1 == program.size()) return void(broken_ = true);
    const Action& next = program[index + 1];
    if (program[index].kind != ActionKind::kForward ||
        (next.kind != ActionKind::kBackward &&
         next.kind != ActionKind::kBackwardInput) ||
        next.microbatch == program[index].microbatch) {
      broken_ = true;
    }
  }

  void start(size_t rank, const Action& action) {
    Machine& machine = machines_[rank];
    const Key key{action.stage, action.microbatch};
    const bool sends = action.kind == ActionKind::kSendActivation ||
                       action.kind == ActionKind::kSendGradient;
    const bool forward = action.kind == ActionKind::kSendActivation ||
                         action.kind == ActionKind::kReceiveActivation;
    const int64_t peer_stage = action.stage + (sends == forward ? 1 : -1);
    if (peer_stage < 0 || peer_stage > last_stage()) return void(broken_ = true);
    const auto peer = static_cast<size_t>(shape_.rank_of_stage[peer_stage]);
    auto delivery = std::make_unique<Delivery>();
    Channel& channel = channels_[sends ? Ends{rank, peer} : Ends{peer, rank}];
    if (sends) {
      delivery->value = take(machine.outbox, {forward, key});
      channel.sends.push_back(delivery.get());
    } else {
      channel.receives.push_back(delivery.get());
    }
    put(machine.flights, {action.kind, key}, std::move(delivery));
    if (!broken_) channel.deliver();
  }

  void hand_on(size_t rank, bool forward, const Key& key, Number value) {
    Machine& machine = machines_[rank];
    const int64_t next = key.first + (forward ? 1 : -1);
    if (shape_.rank_of_stage[next] != static_cast<int64_t>(rank)) {
      return put(machine.outbox, {forward, key}, value);
    }
    put(forward ? machine.inputs : machine.gradients, {next, key.second}, value);
  }

  void compute(size_t rank, const Action& action) {
    Machine& machine = machines_[rank];
    const Key key{action.stage, action.microbatch};
    const auto [stage, microbatch] = key;
    if (action.kind == ActionKind::kForward) {
      const Number x = stage == 0 ? data(microbatch) : take(machine.inputs, key);
      put(machine.saved, key, x);
      const Number y = forward_of(stage, x);
      if (stage < last_stage()) {
        hand_on(rank, true, key, y);
      } else {
        totals_.outputs[microbatch] += y;
      }
      return check_memory(rank);
    }
    if (action.kind == ActionKind::kBackwardWeight) {
      const Half half = take(machine.halves, key);
      totals_.weight_gradients[stage] += half.dy * half.x;
      return;
    }
    const Number x = take(machine.saved, key);
    const Number dy = stage == last_stage() ? loss_gradient(microbatch)
                                            : take(machine.gradients, key);
    if (action.kind == ActionKind::kBackward) {
      totals_.weight_gradients[stage] += dy * x;
    } else {
      put(machine.halves, key, Half{x, dy});
    }
    if (stage > 0) hand_on(rank, false, key, backward_of(stage, dy));
  }

  void check_memory(size_t rank) {
    const Machine& machine = machines_[rank];
    const auto live =
        static_cast<int64_t>(machine.saved.size() + machine.halves.size());
    if (training_ && live > shape_.live_bounds[rank]) broken_ = true;
  }

  using Ends = std::pair<size_t, size_t>;
  const std::vector<Program>& programs_;
  const PipelineShape& shape_;
  const bool training_;
  std::mt19937_64 random_;
  std::vector<Machine> machines_;
  std::map<Ends, Channel> channels_;
  Totals totals_;
  bool broken_ = false;
};

struct Case {
  std::vector<Program> programs;
  PipelineShape shape;
  bool training;

  ProgramKind kind() const {
    return training ? ProgramKind::kTraining : ProgramKind::kForwardOnly;
  }
};

Case make_case(const schedules::ScheduleFacts& facts, int64_t p, int64_t v, int64_t m,
               int64_t depth, bool training) {
  const schedules::PipelineSize size{p, v, m};
  const schedules::Schedule schedule = facts.make(size);
  Case result{
      add_transfers(training ? schedule : schedules::forward_only(schedule), depth),
      {schedule.rank_of_stage, m},
      training};
  for (int64_t rank = 0; rank < p; ++rank) {
    result.shape.live_bounds.push_back(facts.live_bound(size, rank));
  }
  return result;
}

Case random_case(std::mt19937_64& random) {
  const auto all = schedules::all_schedules();
  const schedules::ScheduleFacts& facts = all[random() % all.size()];
  const auto below = [&](uint64_t n) { return static_cast<int64_t>(random() % n); };
  const int64_t v = facts.stages_per_rank == 0 ? below(2) + 1 : facts.stages_per_rank;
  const int64_t p = below(4) + 1, m = below(6) + 1, depth = below(3);
  return make_case(facts, p, v, m, depth, below(8) > 0);
}

// Drops, swaps or doubles an action; swaps also between ranks.
void mutate(std::vector<Program>& programs, std::mt19937_64& random) {
  Program& program = programs[random() % programs.size()];
  if (program.empty()) return;
  const size_t index = random() % program.size();
  const auto at = program.begin() + static_cast<int64_t>(index);
  switch (random() % 8) {
    case 0: program.erase(at); return;
    case 1: {
      const Action copy = *at;
      const size_t to = random() % (program.size() + 1);
      program.insert(program.begin() + static_cast<int64_t>(to), copy);
      return;
    }
    case 2: std::swap(*at, program[random() % program.size()]); return;
    case 3: {
      Program& other = programs[random() % programs.size()];
      if (!other.empty()) std::swap(*at, other[random() % other.size()]);
      return;
    }
    default:  // neighbours: most harmless ones are among these
      if (index + 1 < program.size()) std::swap(*at, program[index + 1]);
  }
}

std::string error_of(const Case& c) {
  try {
    verify_pipeline(c.programs, c.shape, c.kind());
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

std::string text_of(const Case& c) {
  std::string text;
  for (const Program& program : c.programs) text += to_string(program) + "---\n";
  return text;
}

TEST(PipelineMutations, ProgramsOfEveryScheduleWorkAndAreAccepted) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    const Case c = random_case(random);
    ASSERT_EQ(error_of(c), "") << text_of(c);
    ASSERT_TRUE(Pipeline(c.programs, c.shape, c.training, random()).works())
        << text_of(c);
  }
}

TEST(PipelineMutations, ExactlyTheBrokenOnesAreRefusedAndNamed) {
  std::mt19937_64 random(2);
  const std::regex names_action(
      "pipeline programs, rank \\d+, action \\d+ \\(.+\\): .+");
  int num_broken = 0, num_harmless = 0;
  for (int i = 0; i < 10'000; ++i) {
    Case c = random_case(random);
    const std::vector<Program> before = c.programs;
    for (uint64_t edits = random() % 3 + 1; edits > 0; --edits) {
      mutate(c.programs, random);
    }
    if (c.programs == before) continue;
    const bool works = Pipeline(c.programs, c.shape, c.training, random()).works();
    const std::string error = error_of(c);
    ASSERT_EQ(error.empty(), works) << error << "\n" << text_of(c);
    if (!works) {
      ASSERT_TRUE(std::regex_match(error, names_action)) << error;
    }
    ++(works ? num_harmless : num_broken);
  }
  EXPECT_GT(num_broken, 3000);
  EXPECT_GT(num_harmless, 1000);
}

TEST(PipelineMutationsSlow, EverySizeOfEveryScheduleIsProved) {
  for (const schedules::ScheduleFacts& facts : schedules::all_schedules()) {
    for (int64_t p = 1; p <= 16; ++p) {
      for (int64_t v = 1; v <= 4; ++v) {
        if (facts.stages_per_rank != 0 && v != facts.stages_per_rank) continue;
        for (int64_t m = 1; m <= 64; ++m) {
          const Case c = make_case(facts, p, v, m, 1, true);
          ASSERT_EQ(error_of(c), "") << facts.name << " " << p << " " << v << " " << m;
        }
      }
    }
  }
}

}  // namespace
}  // namespace torchtitan::plan::passes
