#include "plan/memory_model.h"

#include <algorithm>

#include "base/checked_math.h"

namespace torchtitan::plan {
namespace {

using base::checked_mul;

class Replay {
 public:
  Replay(const Program& program, const StepShape& shape)
      : shape_(shape), whole_gradient_(shape.groups.size(), false) {
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
    use_.constant += checked_mul(shape.num_microbatches, shape.batch_bytes());
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
      case ActionKind::kOffload:
        host_ += offloaded_bytes(action);
        estimate_.host_peak = std::max(estimate_.host_peak, host_);
        return;
      case ActionKind::kReload: use_.activations += freed_bytes(action); return;
      case ActionKind::kReceiveActivation:
        use_.activations += stage_of(action, shape_).received_bytes;
        return;
      case ActionKind::kReceiveGradient:
        use_.activations += outputs_of(stage_of(action, shape_));
        return;
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
    } else if (action.waits_for == ActionKind::kOffload) {
      use_.activations -= freed_bytes(action);
    } else if (action.waits_for == ActionKind::kReload) {
      host_ -= offloaded_bytes(action);
    } else if (action.waits_for == ActionKind::kSendActivation) {
      const StageShape& stage = stage_of(action, shape_);
      if (!saves_outputs(stage.end() - 1)) use_.activations -= outputs_of(stage);
    } else if (action.waits_for == ActionKind::kSendGradient) {
      use_.activations -= stage_of(action, shape_).received_bytes;
    }
  }

  int64_t offloaded_bytes(const Action& action) const {
    return shape_.host_is_device ? 0 : shape_.segments.at(action.segment).offload_bytes;
  }

  // On the device, while they are away.
  int64_t freed_bytes(const Action& action) const {
    const StageShape* stage = stage_at(action.segment, 0);
    const bool held_before =
        action.segment > 0 && stage == nullptr && saves_outputs(action.segment - 1);
    return std::max<int64_t>(
        0, offloaded_bytes(action) - (held_before ? input_bytes(action.segment) : 0));
  }

  int64_t outputs_of(const StageShape& stage) const {
    return shape_.segments[stage.end() - 1].output_bytes;
  }

  // The stage that a segment begins with or, by `end` 1, ends with; null if none.
  const StageShape* stage_at(int64_t segment, int64_t end) const {
    for (const StageShape& stage : shape_.stages) {
      const int64_t border = end == 0 ? stage.first_segment : stage.end();
      if (border == segment + end) return &stage;
    }
    return nullptr;
  }

  // Of the whole model.
  bool is_last(int64_t segment) const {
    const StageShape* stage = stage_at(segment, 1);
    if (stage != nullptr) return stage->is_last;
    return shape_.stages.empty() && segment + 1 == num_segments();
  }
  int64_t num_segments() const { return static_cast<int64_t>(shape_.segments.size()); }

  // Of the values that a segment is given by the one before it, on any rank.
  int64_t input_bytes(int64_t segment) const {
    const StageShape* stage = stage_at(segment, 0);
    if (stage != nullptr && stage->receives) return stage->received_bytes;
    const bool is_first = stage == nullptr ? segment == 0 : stage->index == 0;
    return is_first ? 0 : shape_.segments[segment - 1].output_bytes;
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
      if (is_last(action.segment) && !saves_outputs(action.segment)) {
        use_.activations -= segment.output_bytes;
      }
      return;
    }
    use_.activations -= input_bytes(action.segment);
    if (action.segment + 1 == num_segments()) {
      end_microbatch(is_last(action.segment) ? segment.output_bytes : 0);
    }
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
    const int64_t inputs = input_bytes(action.segment);
    use_.activations += inputs;  // their gradient
    const bool is_half = action.kind == ActionKind::kBackwardInput;
    use_.temporaries =
        is_half ? segment.input_half_temporary_bytes : segment.backward_temporary_bytes;
    note();
    use_.temporaries = 0;
    if (is_half) use_.activations += segment.rest_bytes;
    use_.activations -= segment.saved_bytes;
    if (segment.saves_outputs) use_.activations -= segment.output_bytes;
    if (!is_last(action.segment)) use_.activations -= segment.output_bytes;
    // The inputs were kept for this segment alone unless their own segment has them.
    const StageShape* stage = stage_at(action.segment, 0);
    const bool received = stage != nullptr && stage->receives;
    if (received || (inputs > 0 && !saves_outputs(action.segment - 1))) {
      use_.activations -= inputs;
    }
    if (action.segment == 0) end_microbatch(0);
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
    use_.constant -= shape_.batch_bytes();
  }

  const StepShape& shape_;
  bool training_ = false;
  std::vector<bool> whole_gradient_;  // the group's exists
  MemoryUse use_;
  MemoryEstimate estimate_;
  int64_t host_ = 0;
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
