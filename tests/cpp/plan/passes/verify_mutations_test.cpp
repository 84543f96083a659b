// The verifier against an interpreter that knows nothing of its rules: it runs programs
// on numbers, one per group, and compares the trained weights with plain loops.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <optional>
#include <tuple>

#include "plan/passes/step_program.h"
#include "plan/shapes.h"
#include "plan/verify.h"

namespace torchtitan::plan::passes {
namespace {

constexpr double kRate = 0.125;

double initial_weight(int64_t group) { return 0.5 + 0.25 * static_cast<double>(group); }
double initial_input(int64_t microbatch) {
  return 1.0 + static_cast<double>(microbatch);
}

struct Outcome {
  std::vector<double> weights;
  double norm = std::nan("");
};

// Segment s maps x to x * (sum of its weights) + s; every rank has the same batch, so a
// sum over n ranks multiplies by n. loss = last x / tokens, tokens = 2.
Outcome train_by_loops(const StepShape& shape, OptimizerTiming timing) {
  const size_t num_segments = shape.segments.size();
  std::vector<double> gradients(shape.groups.size(), 0.0);
  const auto factor = [&](size_t segment) {
    double sum = 0.0;
    for (const int64_t group : shape.segments[segment].groups) {
      sum += initial_weight(group);
    }
    return sum;
  };
  for (int64_t microbatch = 0; microbatch < shape.num_microbatches; ++microbatch) {
    std::vector<double> x{initial_input(microbatch)};
    for (size_t s = 0; s < num_segments; ++s) {
      x.push_back(x.back() * factor(s) + static_cast<double>(s));
    }
    double dx = 0.5;
    for (size_t s = num_segments; s-- > 0; dx *= factor(s)) {
      for (const int64_t group : shape.segments[s].groups) {
        const GroupShape& g = shape.groups[group];
        if (g.trainable) {
          gradients[group] += dx * x[s] * static_cast<double>(g.shards * g.replicas);
        }
      }
    }
  }
  Outcome outcome;
  double squares = 0.0;
  for (const double gradient : gradients) squares += gradient * gradient;
  outcome.norm = std::sqrt(squares);
  const double clip = timing == OptimizerTiming::kAtEnd ? 1.0 / outcome.norm : 1.0;
  for (size_t group = 0; group < gradients.size(); ++group) {
    outcome.weights.push_back(initial_weight(group) - kRate * clip * gradients[group]);
  }
  return outcome;
}

// Runs a program as ranks would. Whatever is absent when it is needed, in use by a
// communication when it is touched, or left at the end breaks the run.
class Interpreter {
 public:
  explicit Interpreter(const StepShape& shape) : shape_(shape) {
    for (size_t group = 0; group < shape.groups.size(); ++group) {
      outcome_.weights.push_back(initial_weight(group));
    }
    for (int64_t m = 0; m < shape.num_microbatches; ++m) x_[{0, m}] = initial_input(m);
  }

  std::optional<Outcome> run(const Program& program) {
    for (const Action& action : program) execute(action);
    const int64_t jobs = shape_.num_microbatches * shape_.segments.size();
    int64_t forwards = 0, backwards = 0;
    for (const Action& action : program) {
      forwards += action.kind == ActionKind::kForward;
      backwards += action.kind == ActionKind::kBackward;
    }
    const bool left = !flights_.empty() || !whole_.empty() || !saved_.empty() ||
                      !inputs_.empty() || !host_.empty() || !whole_gradient_.empty();
    if (broken_ || left || forwards != jobs || backwards != jobs) return std::nullopt;
    return outcome_;
  }

 private:
  using Place = std::pair<int64_t, int64_t>;  // segment, microbatch

  double fail() {
    broken_ = true;
    return std::nan("");
  }

  double take(std::map<Place, double>& from, Place place) {
    const auto found = from.find(place);
    if (found == from.end()) return fail();
    const double value = found->second;
    from.erase(found);
    return value;
  }

  // What a segment keeps for its backward.
  std::map<Place, double>& kept(const Action& a) {
    const bool is_input = shape_.segments[a.segment].recompute &&
                          !saved_.contains({a.segment, a.microbatch});
    return is_input ? inputs_ : saved_;
  }

  double factor(int64_t segment) {
    double sum = 0.0;
    for (const int64_t group : shape_.segments[segment].groups) {
      if (shape_.groups[group].shards == 1) {
        sum += outcome_.weights[group];
      } else {
        sum += whole_.contains(group) ? whole_[group] : fail();
      }
    }
    return sum;
  }

  void execute(const Action& a) {
    switch (a.kind) {
      case ActionKind::kCountTokens: return start(a, 2.0);
      case ActionKind::kUnshard:
        if (whole_.contains(a.group)) fail();
        return start(a, outcome_.weights[a.group]);
      case ActionKind::kReshard:
        if (whole_.erase(a.group) != 1) fail();
        return;
      case ActionKind::kForward: {
        if (!x_.contains({a.segment, a.microbatch})) fail();
        const double x = x_[{a.segment, a.microbatch}];
        x_[{a.segment + 1, a.microbatch}] =
            x * factor(a.segment) + static_cast<double>(a.segment);
        auto& into = shape_.segments[a.segment].recompute ? inputs_ : saved_;
        into[{a.segment, a.microbatch}] = x;
        return;
      }
      case ActionKind::kRecompute:
        factor(a.segment);
        if (!x_.contains({a.segment + 1, a.microbatch})) fail();  // Forward came first
        if (saved_.contains({a.segment, a.microbatch})) fail();
        saved_[{a.segment, a.microbatch}] = take(inputs_, {a.segment, a.microbatch});
        return;
      case ActionKind::kOffload:
        return start(a, take(kept(a), {a.segment, a.microbatch}));
      case ActionKind::kReload: return start(a, take(host_, {a.segment, a.microbatch}));
      case ActionKind::kBackward: return backward(a);
      case ActionKind::kReduceGradient: {
        const double shards = static_cast<double>(shape_.groups[a.group].shards);
        if (!whole_gradient_.contains(a.group)) fail();
        return start(a, whole_gradient_[a.group] * shards);
      }
      case ActionKind::kAllReduceGradient: {
        const double replicas = static_cast<double>(shape_.groups[a.group].replicas);
        return start(a, gradient_[a.group] * replicas);
      }
      case ActionKind::kWait: return wait(a);
      case ActionKind::kClipGradient: {
        double squares = 0.0;
        for (const auto& [group, gradient] : gradient_) {
          touch(group);
          squares += gradient * gradient;
        }
        if (!std::isnan(outcome_.norm)) fail();
        outcome_.norm = std::sqrt(squares);
        return;
      }
      case ActionKind::kOptimizerStep:
        for (auto& [group, gradient] : gradient_) {
          if (a.group != -1 && a.group != group) continue;
          touch(group);
          const double clip = a.group == -1 ? 1.0 / outcome_.norm : 1.0;
          outcome_.weights[group] -= kRate * clip * gradient;
        }
        return;
      default: fail();  // of a pipeline
    }
  }

  void backward(const Action& a) {
    const auto last = static_cast<int64_t>(shape_.segments.size()) - 1;
    const double x = take(saved_, {a.segment, a.microbatch});
    const double dx = a.segment == last ? (tokens_ ? 1.0 / *tokens_ : fail())
                                        : take(dx_, {a.segment + 1, a.microbatch});
    for (const int64_t group : shape_.segments[a.segment].groups) {
      if (!shape_.groups[group].trainable) continue;
      touch(group);
      auto& into = shape_.groups[group].shards > 1 ? whole_gradient_ : gradient_;
      into[group] += dx * x;
    }
    const double dx_below = dx * factor(a.segment);
    if (a.segment > 0) dx_[{a.segment, a.microbatch}] = dx_below;
  }

  void start(const Action& a, double result) {
    if (!flights_.insert({{a.kind, a.group, a.segment, a.microbatch}, result}).second) {
      fail();
    }
  }

  void wait(const Action& a) {
    const auto found = flights_.find({a.waits_for, a.group, a.segment, a.microbatch});
    if (found == flights_.end()) return void(fail());
    const double result = found->second;
    flights_.erase(found);
    if (a.waits_for == ActionKind::kCountTokens) {
      tokens_ = result;
    } else if (a.waits_for == ActionKind::kUnshard) {
      whole_[a.group] = result;
    } else if (a.waits_for == ActionKind::kOffload) {
      host_[{a.segment, a.microbatch}] = result;
    } else if (a.waits_for == ActionKind::kReload) {
      kept(a)[{a.segment, a.microbatch}] = result;
    } else if (a.waits_for == ActionKind::kReduceGradient) {
      if (flights_.contains({ActionKind::kAllReduceGradient, a.group, -1, -1})) fail();
      gradient_[a.group] += result;
      whole_gradient_.erase(a.group);
    } else {
      gradient_[a.group] = result;
    }
  }

  // Reads or writes a gradient, which no communication may be using.
  void touch(int64_t group) {
    if (flights_.contains({ActionKind::kReduceGradient, group, -1, -1})) fail();
    if (flights_.contains({ActionKind::kAllReduceGradient, group, -1, -1})) fail();
  }

  const StepShape& shape_;
  Outcome outcome_;
  std::map<Place, double> x_, dx_;
  std::map<Place, double> saved_, inputs_;  // for Backward, for Recompute
  std::map<Place, double> host_;            // of either, while it is away
  std::map<int64_t, double> whole_, whole_gradient_, gradient_;
  // By kind, group, segment, microbatch.
  std::map<std::tuple<ActionKind, int64_t, int64_t, int64_t>, double> flights_;
  std::optional<double> tokens_;
  bool broken_ = false;
};

bool is_right(const std::optional<Outcome>& outcome, const Outcome& expected) {
  if (!outcome) return false;
  const auto near = [](double a, double b) {  // false for NaN
    return std::abs(a - b) <= 1e-12 * std::abs(b);
  };
  for (size_t group = 0; group < expected.weights.size(); ++group) {
    if (!near(outcome->weights[group], expected.weights[group])) return false;
  }
  return near(outcome->norm, expected.norm);
}

bool is_accepted(const Program& program, const StepShape& shape) {
  try {
    verify(program, shape, ProgramKind::kTraining);
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

struct Case {
  StepShape shape;
  StepOptions options;
};

std::vector<Case> cases() {
  std::vector<StepShape> shapes;
  shapes.push_back(chain(2, 1, 1, 2));                    // one rank
  shapes.push_back(chain(2, 1, 3, 2));                    // DDP
  shapes.push_back(chain(3, 2, 1, 2));                    // FSDP
  shapes.push_back(chain(2, 2, 2, 1, Reshard::kAlways));  // HSDP
  shapes.push_back(chain(3, 2, 2, 2, Reshard::kNever));
  StepShape mixed = chain(4, 2, 1, 2);
  mixed.segments[1].recompute = true;
  mixed.segments[3].recompute = true;
  mixed.segments[3].groups = {3, 0};  // tied embedding
  mixed.groups[1].shards = 1;
  mixed.groups[2].trainable = false;
  shapes.push_back(mixed);
  StepShape offloaded = chain(4, 2, 1, 2);
  for (const size_t segment : {0, 1, 2}) offloaded.segments[segment].offload = true;
  offloaded.segments[1].recompute = true;
  shapes.push_back(offloaded);
  std::vector<Case> cases;
  for (const StepShape& shape : shapes) {
    for (const int64_t depth : {0, 1, 2}) {
      for (const auto timing :
           {OptimizerTiming::kAtEnd, OptimizerTiming::kAtLastGradient}) {
        cases.push_back({shape,
                         {.prefetch_depth = depth,
                          .reduce_depth = depth,
                          .offload_depth = depth,
                          .optimizer = timing}});
      }
    }
  }
  return cases;
}

TEST(VerifyMutations, BuiltProgramsTrainAsPlainLoopsDoAndAreAccepted) {
  for (const auto& [shape, options] : cases()) {
    const Program program = build_step_program(shape, options);
    EXPECT_TRUE(is_right(Interpreter(shape).run(program),
                         train_by_loops(shape, options.optimizer)))
        << to_string(program);
    EXPECT_NO_THROW(verify(program, shape, ProgramKind::kTraining))
        << to_string(program);
  }
}

TEST(VerifyMutations, EveryDroppedOrDoubledActionIsRefused) {
  for (const auto& [shape, options] : cases()) {
    const Program program = build_step_program(shape, options);
    for (size_t i = 0; i < program.size(); ++i) {
      Program dropped = program;
      dropped.erase(dropped.begin() + i);
      EXPECT_FALSE(is_accepted(dropped, shape)) << i << " dropped\n"
                                                << to_string(program);
      Program doubled = program;
      doubled.insert(doubled.begin() + i, program[i]);
      EXPECT_FALSE(is_accepted(doubled, shape)) << i << " doubled\n"
                                                << to_string(program);
    }
  }
}

TEST(VerifyMutations, ProgramsWithTwoActionsSwappedAreAcceptedOnlyIfTheyTrainTheSame) {
  int64_t num_accepted = 0, num_wrong = 0;
  for (const auto& [shape, options] : cases()) {
    const Program program = build_step_program(shape, options);
    const Outcome expected = train_by_loops(shape, options.optimizer);
    for (size_t i = 0; i < program.size(); ++i) {
      for (size_t j = i + 1; j < program.size(); ++j) {
        if (program[i] == program[j]) continue;
        Program swapped = program;
        std::swap(swapped[i], swapped[j]);
        const bool right = is_right(Interpreter(shape).run(swapped), expected);
        const bool accepted = is_accepted(swapped, shape);
        ASSERT_TRUE(right || !accepted) << i << " and " << j << "\n"
                                        << to_string(swapped);
        num_accepted += accepted;
        num_wrong += !right;
      }
    }
  }
  EXPECT_GT(num_accepted, 100);  // it does not simply refuse what it has not seen
  EXPECT_GT(num_wrong, 1000);
}

}  // namespace
}  // namespace torchtitan::plan::passes
