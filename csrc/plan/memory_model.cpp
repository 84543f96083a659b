#include "plan/memory_model.h"

#include <algorithm>

#include "base/checked_math.h"

namespace torchtitan::plan {
namespace {

using base::checked_mul;

class Replay {
 public:
  Replay(const Program& program, const StepShape& shape)
      : shape_(shape), last_segment_(static_cast<int64_t>(shape.segments.size()) - 1),
        whole_gradient_(shape.groups.size(), false) {
    training_ = std::any_of(program.begin(), program.end(),
                            [](const Action& action) { return is_backward(action); });
    use_.constant = shape.constant_bytes;
    for (const GroupShape& group : shape.groups) {
      const bool copy = group.shards == 1 && group.compute_bytes != group.master_bytes;
      use_.parameters += checked_mul(
          group.shard_numel, group.master_bytes + (copy ? group.compute_bytes : 0));
      if (!group.trainable) continue;
      use_.gradients += checked_mul(group.shard_numel, group.reduce_bytes);
      use_.optimizer += checked_mul(group.shard_numel, group.optimizer_bytes);
    }
    estimate_.before = estimate_.peak = use_;
    estimate_.peak_action = -1;
    use_.constant += checked_mul(shape.num_microbatches, shape.segments[0].input_bytes);
  }

  MemoryEstimate run(const Program& program) {
    for (size_t i = 0; i < program.size(); ++i) {
      highest_ = 0;
      index_ = static_cast<int64_t>(i);
      execute(program[i]);
      note();
      estimate_.totals.push_back(highest_);
    }
    estimate_.after = use_;
    return std::move(estimate_);
  }

 private:
  // Takes the present use into account.
  void note() {
    const int64_t total = use_.total();
    highest_ = std::max(highest_, total);
    if (total <= estimate_.peak.total()) return;
    estimate_.peak = use_;
    estimate_.peak_action = index_;
  }

  void execute(const Action& action) {
    switch (action.kind) {
      case ActionKind::kUnshard:
        use_.gathered += gather_bytes(shape_.groups.at(action.group)) +
                         gather_transport_bytes(shape_.groups.at(action.group));
        return;
      case ActionKind::kReshard:
        use_.gathered -= whole_bytes(shape_.groups.at(action.group));
        return;
      case ActionKind::kReduceGradient: return start_reduce(action.group);
      case ActionKind::kWait: return wait(action);
      case ActionKind::kForward: return forward(action);
      case ActionKind::kRecompute: return recompute(action);
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput: return backward(action);
      case ActionKind::kBackwardWeight: return backward_weight(action);
      default: return;
    }
  }

  static int64_t whole_bytes(const GroupShape& group) {
    return checked_mul(group.numel, group.compute_bytes);
  }

  static int64_t gather_bytes(const GroupShape& group) {
    const int64_t cast = group.compute_bytes != group.master_bytes ? 1 : 0;
    return checked_mul(checked_mul(group.shards + cast, group.shard_numel),
                       group.compute_bytes);
  }

  static int64_t gather_transport_bytes(const GroupShape& group) {
    return checked_mul(group.transport_numel, group.compute_bytes);
  }

  static int64_t reduce_bytes(const GroupShape& group) {
    return checked_mul(
        checked_mul(group.shards + 1, group.shard_numel) + group.transport_numel,
        group.reduce_bytes);
  }

  void start_reduce(int64_t index) {
    const GroupShape& group = shape_.groups.at(index);
    const int64_t packed =
        checked_mul(checked_mul(group.shards, group.shard_numel), group.reduce_bytes);
    use_.whole_gradients += packed;
    note();
    use_.whole_gradients -= checked_mul(group.numel, group.reduce_bytes);
    use_.whole_gradients += reduce_bytes(group) - packed;
    whole_gradient_[index] = false;
  }

  void wait(const Action& action) {
    if (action.waits_for == ActionKind::kUnshard) {
      const GroupShape& group = shape_.groups.at(action.group);
      use_.gathered += whole_bytes(group) - gather_transport_bytes(group);
      note();
      use_.gathered -= gather_bytes(group);
    } else if (action.waits_for == ActionKind::kReduceGradient) {
      note();
      use_.whole_gradients -= reduce_bytes(shape_.groups.at(action.group));
    }
  }

  // Whether forward leaves something for backward, and the outputs in it.
  bool saves(int64_t segment) const {
    return training_ && !shape_.segments[segment].recompute;
  }
  bool saves_outputs(int64_t segment) const {
    return saves(segment) && shape_.segments[segment].saves_outputs;
  }

  void forward(const Action& action) {
    const SegmentShape& segment = shape_.segments.at(action.segment);
    use_.activations += segment.output_bytes + segment.saved_bytes;
    use_.temporaries = segment.forward_temporary_bytes;
    note();
    use_.temporaries = 0;
    if (!saves(action.segment)) {
      use_.activations -= segment.saved_bytes - (training_ ? segment.kept_bytes : 0);
    }
    if (training_) {
      // Nobody takes the last outputs as inputs.
      if (action.segment == last_segment_ && !saves_outputs(action.segment)) {
        use_.activations -= segment.output_bytes;
      }
      return;
    }
    if (action.segment > 0) {
      use_.activations -= shape_.segments[action.segment - 1].output_bytes;
    }
    if (action.segment == last_segment_) end_microbatch(segment.output_bytes);
  }

  void recompute(const Action& action) {
    const SegmentShape& segment = shape_.segments.at(action.segment);
    use_.activations += segment.output_bytes + segment.saved_bytes - segment.kept_bytes;
    use_.temporaries = segment.forward_temporary_bytes;
    note();
    use_.temporaries = 0;
    if (!segment.saves_outputs) use_.activations -= segment.output_bytes;
  }

  void make_whole_gradients(const SegmentShape& segment) {
    for (const int64_t index : segment.groups) {
      const GroupShape& group = shape_.groups.at(index);
      if (group.shards == 1 || !group.trainable || whole_gradient_[index]) continue;
      whole_gradient_[index] = true;
      use_.whole_gradients += checked_mul(group.numel, group.reduce_bytes);
    }
  }

  // Or the first half of it.
  void backward(const Action& action) {
    const SegmentShape& segment = shape_.segments.at(action.segment);
    make_whole_gradients(segment);
    const bool first = action.segment == 0;
    const int64_t input_bytes =
        first ? 0 : shape_.segments[action.segment - 1].output_bytes;
    use_.activations += input_bytes;  // gradient of the inputs
    const bool is_half = action.kind == ActionKind::kBackwardInput;
    use_.temporaries =
        is_half ? segment.input_half_temporary_bytes : segment.backward_temporary_bytes;
    note();
    use_.temporaries = 0;
    if (is_half) use_.activations += segment.rest_bytes;
    use_.activations -= segment.saved_bytes;
    if (segment.saves_outputs) use_.activations -= segment.output_bytes;
    if (action.segment != last_segment_) use_.activations -= segment.output_bytes;
    // The inputs were kept for this segment alone unless their own segment has them.
    if (!first && !saves_outputs(action.segment - 1)) use_.activations -= input_bytes;
    if (first) end_microbatch(0);
  }

  void backward_weight(const Action& action) {
    const SegmentShape& segment = shape_.segments.at(action.segment);
    make_whole_gradients(segment);
    use_.temporaries = segment.weight_half_temporary_bytes;
    note();
    use_.temporaries = 0;
    use_.activations -= segment.rest_bytes;
  }

  void end_microbatch(int64_t output_bytes) {
    note();
    use_.activations -= output_bytes;
    use_.constant -= shape_.segments[0].input_bytes;
  }

  const StepShape& shape_;
  const int64_t last_segment_;
  bool training_ = false;
  std::vector<bool> whole_gradient_;  // the group's exists
  MemoryUse use_;
  MemoryEstimate estimate_;
  int64_t highest_ = 0;
  int64_t index_ = -1;
};

}  // namespace

int64_t MemoryUse::total() const {
  return constant + parameters + gradients + optimizer + gathered + whole_gradients +
         activations + temporaries;
}

MemoryEstimate estimate_memory(const Program& program, const StepShape& shape) {
  check(shape);
  return Replay(program, shape).run(program);
}

}  // namespace torchtitan::plan
