#include "plan/simulate.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "base/errors.h"
#include "plan/traffic.h"

namespace torchtitan::plan {
namespace {

using base::check_value;

constexpr const char* kHost = "host";

void check_rate(const char* name, double rate) {
  check_value(rate > 0.0, "simulate: ", name, " must be positive, got ", rate);
}

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
    result_.seconds = now_;
    for (const auto& [start, end] : ends_) {
      result_.seconds = std::max(result_.seconds, end);
    }
    return std::move(result_);
  }

 private:
  // Of a start: kind, group, segment, microbatch.
  using Key = std::tuple<ActionKind, int64_t, int64_t, int64_t>;

  static Key key(ActionKind kind, const Action& action) {
    return {kind, action.group, action.segment, action.microbatch};
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
      case ActionKind::kClipGradient: return wait_until(now_ + 2.0 * loss_latency());
      case ActionKind::kOptimizerStep:
        return compute(optimizer_bytes(action.group) / cost_.memory_bytes_per_second);
      case ActionKind::kReshard: return {now_, now_};
      default:
        throw std::invalid_argument(base::message(
            "simulate: ", to_string(action), " has no time without its other rank"));
    }
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
          is_hop ? hop_seconds(action, exchange)
                 : ring_seconds(action, exchange.axis, exchange.verb == "all_reduce",
                                exchange.ranks, exchange.bytes);
      (is_hop ? hidden : exposed) += seconds;
    }
    return std::max(flops(action) / cost_.flops_per_second, hidden) + exposed;
  }

  double hop_seconds(const Action& action, const Exchange& exchange) const {
    const Link& link = link_of(action, exchange.axis);
    return link.latency_seconds +
           static_cast<double>(exchange.bytes) / link.bytes_per_second;
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

  Span wait_until(double time) {
    const Span span{now_, std::max(now_, time)};
    result_.exposed_seconds += span.end - span.begin;
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

}  // namespace

Simulation simulate(const Program& program, const StepShape& shape,
                    const CostModel& cost) {
  check(shape);
  return Clock(shape, cost).run(program);
}

}  // namespace torchtitan::plan
