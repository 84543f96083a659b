#include "plan/simulate.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "base/errors.h"
#include "plan/message_clock.h"
#include "plan/traffic.h"

namespace torchtitan::plan {
namespace {

using base::check_value;

constexpr const char* kHost = "host";

void check_rate(const char* name, double rate) {
  check_value(rate > 0.0, "simulate: ", name, " must be positive, got ", rate);
}

// Of one rank.
class Clock {
 public:
  Clock(const StepShape& shape, const CostModel& cost) : shape_(shape), cost_(cost) {
    check_rate("flops_per_second", cost.flops_per_second);
    check_rate("memory_bytes_per_second", cost.memory_bytes_per_second);
    for (const auto& [axis, link] : cost.links) {
      check_rate("bytes_per_second of a link", link.bytes_per_second);
      check_value(link.latency_seconds >= 0.0, "simulate: the latency of axis '", axis,
                  "' is negative");
    }
  }

  Simulation run(const Program& program) {
    for (const Action& action : program) result_.spans.push_back(execute(action));
    return finish();
  }

  double now() const { return now_; }

  Simulation finish() {
    result_.seconds = now_;
    for (const auto& [start, end] : ends_) {
      result_.seconds = std::max(result_.seconds, end);
    }
    return std::move(result_);
  }

  Span execute(const Action& action) {
    switch (action.kind) {
      case ActionKind::kForward:
      case ActionKind::kRecompute:
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
      case ActionKind::kBackwardWeight: return compute(segment_seconds(action));
      case ActionKind::kUnshard:
      case ActionKind::kReduceGradient:
      case ActionKind::kAllReduceGradient:
        return start(action, transfer_seconds(action));
      case ActionKind::kCountTokens: return start(action, loss_latency());
      case ActionKind::kOffload:
      case ActionKind::kReload: return start(action, host_seconds(action));
      case ActionKind::kWait:
        return wait_until(ends_.at(key(action.waits_for, action)));
      case ActionKind::kClipGradient: return wait_until(now_ + clip_seconds());
      case ActionKind::kOptimizerStep:
        return compute(optimizer_bytes(action.group) / cost_.memory_bytes_per_second);
      case ActionKind::kReshard: return {now_, now_};
      default:
        throw std::invalid_argument(base::message(
            "simulate: ", to_string(action), " has no time without its other rank"));
    }
  }

  // What other ranks must have come to first.
  Span wait_until(double time) {
    const Span span{now_, std::max(now_, time)};
    result_.exposed_seconds += span.end - span.begin;
    now_ = span.end;
    return span;
  }

  double clip_seconds() const { return 2.0 * loss_latency(); }

  double message_seconds(const Action& action) const {
    return hop_seconds(action, "pp", collective_of(action, shape_).second);
  }

  double copies_seconds(const Action& action) const {
    const GroupShape& group = shape_.groups.at(action.group);
    return hop_seconds(action, "pp",
                       (group.copies - 1) * group.shard_numel * group.reduce_bytes);
  }

  double hop_seconds(const Action& action, const std::string& axis,
                     int64_t bytes) const {
    const Link& link = link_of(action, axis);
    return link.latency_seconds + static_cast<double>(bytes) / link.bytes_per_second;
  }

 private:
  // Of a start: kind, group, segment, microbatch.
  using Key = std::tuple<ActionKind, int64_t, int64_t, int64_t>;

  static Key key(ActionKind kind, const Action& action) {
    return {kind, action.group, action.segment, action.microbatch};
  }

  double flops(const Action& action) const {
    const SegmentShape& segment = shape_.segments.at(action.segment);
    switch (action.kind) {
      case ActionKind::kForward: return static_cast<double>(segment.forward_flops);
      case ActionKind::kRecompute: return static_cast<double>(segment.recompute_flops);
      case ActionKind::kBackwardInput:
        return static_cast<double>(segment.backward_flops - segment.weight_flops);
      case ActionKind::kBackwardWeight:
        return static_cast<double>(segment.weight_flops);
      default: return static_cast<double>(segment.backward_flops);
    }
  }

  double segment_seconds(const Action& action) const {
    double hidden = 0.0, exposed = 0.0;
    for (const Exchange& exchange : exchanges_of(action, shape_)) {
      if (exchange.verb == "recv") continue;  // the other end of a send
      const bool is_hop = exchange.verb == "send";
      const double seconds =
          is_hop ? hop_seconds(action, exchange.axis, exchange.bytes)
                 : ring_seconds(action, exchange.axis, exchange.verb == "all_reduce",
                                exchange.ranks, exchange.bytes);
      (is_hop ? hidden : exposed) += seconds;
    }
    return std::max(flops(action) / cost_.flops_per_second, hidden) + exposed;
  }

  // Each state, the parameter and its gradient are read; all but the gradient written.
  double optimizer_bytes(int64_t group) const {
    double bytes = 0.0;
    for (size_t index = 0; index < shape_.groups.size(); ++index) {
      const GroupShape& g = shape_.groups[index];
      if (!g.trainable || (group >= 0 && group != static_cast<int64_t>(index)))
        continue;
      bytes += static_cast<double>(g.shard_numel) *
               static_cast<double>(2 * g.optimizer_bytes + 2 * g.master_bytes +
                                   g.reduce_bytes);
    }
    return bytes;
  }

  double loss_latency() const {
    const auto link = cost_.links.find("loss");
    return link == cost_.links.end() ? 0.0 : link->second.latency_seconds;
  }

  double host_seconds(const Action& action) const {
    if (shape_.host_is_device) return 0.0;
    const Link& link = link_of(action, kHost);
    return link.latency_seconds +
           static_cast<double>(shape_.segments.at(action.segment).offload_bytes) /
               link.bytes_per_second;
  }

  double transfer_seconds(const Action& action) const {
    const auto [channel, bytes] = collective_of(action, shape_);
    const GroupShape& group = shape_.groups[action.group];
    const bool all_reduce = action.kind == ActionKind::kAllReduceGradient;
    return ring_seconds(action, channel.first, all_reduce,
                        all_reduce ? group.replicas : group.shards, bytes);
  }

  double ring_seconds(const Action& action, const std::string& axis, bool all_reduce,
                      int64_t num_ranks, int64_t bytes) const {
    const auto ranks = static_cast<double>(num_ranks);
    const Link& link = link_of(action, axis);
    const double share = (all_reduce ? 2.0 : 1.0) * (ranks - 1.0) / ranks;
    return link.latency_seconds +
           share * static_cast<double>(bytes) / link.bytes_per_second;
  }

  const Link& link_of(const Action& action, const std::string& axis) const {
    const auto link = cost_.links.find(axis);
    check_value(link != cost_.links.end(), "simulate: ", to_string(action),
                " uses the axis '", axis, "', which has no link");
    return link->second;
  }

  std::string axis_of(const Action& start) const {
    if (start.kind == ActionKind::kCountTokens) return "loss";
    if (is_host_copy(start)) return kHost;
    return collective_of(start, shape_).first.first;
  }

  Span start(const Action& action, double seconds) {
    double& free_at = axis_free_at_[axis_of(action)];
    const Span span{std::max(now_, free_at), std::max(now_, free_at) + seconds};
    free_at = span.end;
    ends_[key(action.kind, action)] = span.end;
    return span;
  }

  Span compute(double seconds) {
    const Span span{now_, now_ + seconds};
    result_.compute_seconds += seconds;
    now_ = span.end;
    return span;
  }

  const StepShape& shape_;
  const CostModel& cost_;
  double now_ = 0.0;
  std::map<std::string, double> axis_free_at_;
  std::map<Key, double> ends_;
  Simulation result_{};
};

// The ranks of a pipeline.
class Clocks {
 public:
  Clocks(std::span<const Program> programs, std::span<const StepShape> shapes,
         const CostModel& cost)
      : programs_(programs), shapes_(shapes), messages_(programs, "simulate"),
        next_(programs.size(), 0), at_clip_(programs.size()) {
    for (size_t rank = 0; rank < programs.size(); ++rank) {
      clocks_.emplace_back(shapes[rank], cost);
      spans_.emplace_back(programs[rank].size(), Span{0.0, 0.0});
    }
  }

  std::vector<Simulation> run() {
    for (bool progress = true; progress;) {
      progress = false;
      for (size_t rank = 0; rank < programs_.size(); ++rank) {
        while (next_[rank] < programs_[rank].size() && step(rank)) progress = true;
      }
    }
    std::vector<Simulation> results;
    for (size_t rank = 0; rank < programs_.size(); ++rank) {
      check_value(next_[rank] == programs_[rank].size(), "simulate: rank ", rank,
                  " waits for ever in action ", next_[rank]);
      fill_transfers(rank);
      results.push_back(clocks_[rank].finish());
      results.back().spans = std::move(spans_[rank]);
    }
    return results;
  }

 private:
  // Ranks of the copies of a group that have started to add them up.
  struct Sum {
    int64_t arrived = 0;
    double latest = 0.0;
  };

  bool step(size_t rank) {
    const Action& action = programs_[rank][next_[rank]];
    const auto span = execute(rank, action);
    if (!span) return false;
    spans_[rank][next_[rank]++] = *span;
    return true;
  }

  std::optional<Span> execute(size_t rank, const Action& action) {
    Clock& clock = clocks_[rank];
    const bool is_wait = action.kind == ActionKind::kWait;
    if (is_transfer(action)) {
      messages_.start(action, clock.now(), clock.message_seconds(action));
    } else if (is_wait && is_transfer({.kind = action.waits_for})) {
      const auto passed = messages_.passed(action);
      if (!passed) return std::nullopt;
      return clock.wait_until(passed->end);
    } else if (action.kind == ActionKind::kSumCopies) {
      Sum& sum = sum_of(rank, action);
      ++sum.arrived;
      sum.latest = std::max(sum.latest, clock.now());
    } else if (is_wait && action.waits_for == ActionKind::kSumCopies) {
      const auto end = end_of_sum(rank, action);
      if (!end) return std::nullopt;
      return clock.wait_until(*end);
    } else if (action.kind == ActionKind::kClipGradient && programs_.size() > 1) {
      return clip(rank, action);
    } else {
      return clock.execute(action);
    }
    return Span{clock.now(), clock.now()};
  }

  Sum& sum_of(size_t rank, const Action& action) {
    return sums_[shapes_[rank].groups.at(action.group).name];
  }

  std::optional<double> end_of_sum(size_t rank, const Action& action) {
    const Sum& sum = sum_of(rank, action);
    if (sum.arrived < shapes_[rank].groups.at(action.group).copies) return std::nullopt;
    return sum.latest + clocks_[rank].copies_seconds(action);
  }

  std::optional<Span> clip(size_t rank, const Action& action) {
    at_clip_[rank] = clocks_[rank].now();
    double latest = 0.0;
    for (const auto& time : at_clip_) {
      if (!time) return std::nullopt;
      latest = std::max(latest, *time);
    }
    Clock& clock = clocks_[rank];
    return clock.wait_until(latest + clock.clip_seconds() +
                            clock.hop_seconds(action, "pp", 0));
  }

  // Their ends are known only now.
  void fill_transfers(size_t rank) {
    for (size_t i = 0; i < programs_[rank].size(); ++i) {
      const Action& action = programs_[rank][i];
      if (is_transfer(action)) {
        const auto passed = messages_.passed(action);
        check_value(passed.has_value(), "simulate: rank ", rank, ": nobody receives ",
                    to_string(action));
        spans_[rank][i] = *passed;
      }
      if (action.kind == ActionKind::kSumCopies) {
        spans_[rank][i].end = *end_of_sum(rank, action);
      }
    }
  }

  const std::span<const Program> programs_;
  const std::span<const StepShape> shapes_;
  MessageClock messages_;
  std::vector<Clock> clocks_;
  std::vector<std::vector<Span>> spans_;
  std::vector<size_t> next_;
  std::vector<std::optional<double>> at_clip_;  // by rank, the time that it came there
  std::map<std::string, Sum> sums_;             // by name of the group
};

}  // namespace

Simulation simulate(const Program& program, const StepShape& shape,
                    const CostModel& cost) {
  check(shape);
  return Clock(shape, cost).run(program);
}

std::vector<Simulation> simulate(std::span<const Program> programs,
                                 std::span<const StepShape> shapes,
                                 const CostModel& cost) {
  check_value(programs.size() == shapes.size(), "simulate: got programs of ",
              programs.size(), " ranks and shapes of ", shapes.size());
  for (const StepShape& shape : shapes) check(shape);
  return Clocks(programs, shapes, cost).run();
}

}  // namespace torchtitan::plan
