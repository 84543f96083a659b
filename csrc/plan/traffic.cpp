#include "plan/traffic.h"

#include <set>

#include "base/checked_math.h"

namespace torchtitan::plan {
namespace {

using base::checked_mul;

constexpr int64_t kScalarBytes = 8;  // float64

class Counter {
 public:
  Counter(const StepShape& shape, int64_t loss_ranks)
      : shape_(shape), loss_ranks_(loss_ranks) {
    for (const GroupShape& group : shape.groups) {
      if (group.shards > 1) shard_axes_.insert(group.shard_axis);
    }
  }

  void add(const Action& action) {
    switch (action.kind) {
      case ActionKind::kUnshard:
      case ActionKind::kReduceGradient:
      case ActionKind::kAllReduceGradient:
      case ActionKind::kSendActivation:
      case ActionKind::kReceiveActivation:
      case ActionKind::kSendGradient:
      case ActionKind::kReceiveGradient: {
        const auto [channel, bytes] = collective_of(action, shape_);
        return add(channel, bytes);
      }
      case ActionKind::kSumCopies: {
        const GroupShape& group = shape_.groups.at(action.group);
        for (int64_t copy = 1; copy < group.copies; ++copy) {
          for (const char* verb : {"send", "recv"}) {
            add({"pp", verb}, checked_mul(group.shard_numel, group.reduce_bytes));
          }
        }
        return;
      }
      case ActionKind::kCountTokens: return add_scalar("loss", loss_ranks_);
      case ActionKind::kClipGradient:
        add_scalar("loss", loss_ranks_);
        for (const std::string& axis : shard_axes_) add_scalar(axis, 2);
        add_scalar("tp", shape_.tensor_ranks);
        if (shape_.pipeline_ranks > 1) add({"pp", "all_reduce"}, 2 * kScalarBytes);
        return;
      case ActionKind::kOptimizerStep:
        if (action.group >= 0) {
          const GroupShape& group = shape_.groups.at(action.group);
          add_scalar(group.shard_axis, group.shards);
          add_scalar("tp", shape_.tensor_ranks);
        }
        return;
      case ActionKind::kForward:
      case ActionKind::kRecompute:
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
      case ActionKind::kBackwardWeight:
        for (const Exchange& exchange : exchanges_of(action, shape_)) {
          add({exchange.axis, exchange.verb}, exchange.bytes);
        }
        return;
      default: return;
    }
  }

  std::map<Channel, Traffic> totals;

 private:
  void add(const Channel& channel, int64_t bytes) {
    Traffic& total = totals[channel];
    total.calls += 1;
    total.bytes = base::checked_add(total.bytes, bytes);
  }

  void add_scalar(const std::string& axis, int64_t ranks) {
    if (ranks > 1) add({axis, "all_reduce"}, kScalarBytes);
  }

  const StepShape& shape_;
  int64_t loss_ranks_;
  std::set<std::string> shard_axes_;
};

}  // namespace

const std::vector<Exchange>& exchanges_of(const Action& action,
                                          const StepShape& shape) {
  const SegmentShape& segment = shape.segments.at(action.segment);
  switch (action.kind) {
    case ActionKind::kForward: return segment.forward_exchanges;
    case ActionKind::kRecompute: return segment.recompute_exchanges;
    case ActionKind::kBackwardInput: return segment.backward_input_exchanges;
    case ActionKind::kBackwardWeight: return segment.backward_weight_exchanges;
    default: return segment.backward_exchanges;
  }
}

std::pair<Channel, int64_t> collective_of(const Action& start, const StepShape& shape) {
  const auto group = [&]() -> const GroupShape& {
    return shape.groups.at(start.group);
  };
  switch (start.kind) {
    case ActionKind::kUnshard:
      return {{group().shard_axis, "all_gather"},
              checked_mul(checked_mul(group().shards, group().shard_numel),
                          group().compute_bytes)};
    case ActionKind::kReduceGradient:
      return {{group().shard_axis, "reduce_scatter"},
              checked_mul(checked_mul(group().shards, group().shard_numel),
                          group().reduce_bytes)};
    case ActionKind::kAllReduceGradient:
      return {{group().replica_axis, "all_reduce"},
              checked_mul(group().shard_numel, group().reduce_bytes)};
    case ActionKind::kSendActivation:
    case ActionKind::kReceiveGradient: {
      const bool sends = start.kind == ActionKind::kSendActivation;
      const SegmentShape& last = shape.segments.at(stage_of(start, shape).end() - 1);
      return {{"pp", sends ? "send" : "recv"}, last.output_bytes};
    }
    case ActionKind::kReceiveActivation:
    case ActionKind::kSendGradient: {
      const bool sends = start.kind == ActionKind::kSendGradient;
      return {{"pp", sends ? "send" : "recv"}, stage_of(start, shape).received_bytes};
    }
    default:
      throw std::invalid_argument(
          base::message("collective_of: ", to_string(start), " moves nothing"));
  }
}

std::map<Channel, Traffic> traffic(const Program& program, const StepShape& shape,
                                   int64_t loss_ranks) {
  Counter counter(shape, loss_ranks);
  for (const Action& action : program) counter.add(action);
  return std::move(counter.totals);
}

}  // namespace torchtitan::plan
