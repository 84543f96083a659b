#include "nn/measure.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <set>

#include "core/memory_counter.h"
#include "nn/host_store.h"
#include "nn/whole_group.h"

namespace torchtitan::nn {
namespace {

using Values = std::map<std::string, at::Tensor>;

constexpr const char* kLoss = "loss";

// Bytes of the storages behind `tensors` that are not behind `known`, each once.
int64_t new_bytes(const TensorList& tensors, const TensorList& known) {
  std::set<const void*> seen;
  for (const auto& tensor : known) {
    if (tensor.defined()) seen.insert(tensor.storage().unsafeGetStorageImpl());
  }
  int64_t bytes = 0;
  for (const auto& tensor : tensors) {
    if (!tensor.defined()) continue;
    if (!seen.insert(tensor.storage().unsafeGetStorageImpl()).second) continue;
    bytes += static_cast<int64_t>(tensor.storage().nbytes());
  }
  return bytes;
}

class Chain {
 public:
  // `crossing` has a tensor like each value that crosses a boundary of stages.
  Chain(const Model& model, const Stages& stages, const GroupOptions& options,
        const Values& batch, const Values& crossing)
      : model_(model), stages_(stages), crossing_(crossing), batch_(batch),
        values_(batch), saved_(model.segments.size()) {
    GroupOptions meta = options;
    meta.device = at::Device(at::kMeta);
    for (const auto& spec : model.groups) {
      groups_.push_back(
          std::make_unique<WholeGroup>(spec, meta, collectives::Group("alone")));
      groups_.back()->zero_gradient();
    }
  }

  void forward(size_t index, plan::SegmentShape& shape) {
    Segment& segment = *model_.segments[index];
    for (size_t i = 0; i < stages_.shapes.size(); ++i) {
      if (stages_.shapes[i].first_segment != static_cast<int64_t>(index)) continue;
      for (const auto& name : stages_.inputs[i]) values_[name] = like_crossing(name);
    }
    TensorList inputs;
    for (const auto& name : segment.inputs()) {
      const auto found = values_.find(name);
      TORCH_CHECK_VALUE(found != values_.end(), "measure: segment ", segment.name(),
                        " reads the value '", name, "', which nothing provides");
      inputs.push_back(found->second);
    }
    const auto leaves = leaves_of(segment);
    const auto flops = segment.flops(inputs, leaves);
    shape.forward_flops = flops.forward;
    shape.recompute_flops = flops.recompute;
    shape.backward_flops = flops.backward;
    shape.weight_flops = flops.weight;
    auto exchanges = segment.exchanges(inputs, leaves);
    shape.forward_exchanges = std::move(exchanges.forward);
    shape.recompute_exchanges = std::move(exchanges.recompute);
    shape.backward_exchanges = std::move(exchanges.backward);
    shape.backward_input_exchanges = std::move(exchanges.backward_input);
    shape.backward_weight_exchanges = std::move(exchanges.backward_weight);
    auto& memory = core::meta_memory();
    const int64_t before = memory.live();
    memory.reset_peak();
    auto outputs = segment.forward(inputs, leaves, &saved_[index]);
    shape.input_bytes = new_bytes(inputs, {});
    shape.output_bytes = new_bytes(outputs, inputs);
    shape.saved_bytes =
        std::max<int64_t>(0, memory.live() - before - shape.output_bytes);
    shape.forward_temporary_bytes = memory.peak() - memory.live();
    // The next segment gets others, so that it shows what holds these.
    for (size_t i = 0; i < outputs.size(); ++i) {
      values_[segment.outputs()[i]] = at::empty_like(outputs[i]);
    }
    const int64_t with_outputs = memory.live();
    outputs.clear();
    shape.saves_outputs = with_outputs - memory.live() < shape.output_bytes;
    if (shape.recompute) {
      std::unique_ptr<Segment::Saved> kept;
      const int64_t without = memory.live();
      segment.forward_for_recompute(inputs, leaves, &kept);
      shape.kept_bytes = memory.live() - without;
      if (shape.offload) shape.offload_bytes = bytes_kept(segment, inputs, kept.get());
    } else if (shape.offload) {
      shape.offload_bytes = storage_bytes(saved_[index]->tensors());
    }
    measure_halves(segment, inputs, shape);
  }

  // `input_gradient_bytes` are those that the memory model adds by itself.
  void backward(size_t index, int64_t input_gradient_bytes, plan::SegmentShape& shape) {
    Segment& segment = *model_.segments[index];
    for (size_t i = 0; i < stages_.shapes.size(); ++i) {
      if (stages_.shapes[i].end() != static_cast<int64_t>(index) + 1) continue;
      for (const auto& name : stages_.outputs[i])
        gradients_[name] = like_crossing(name);
    }
    TensorList output_gradients;
    for (const auto& name : segment.outputs()) {
      if (name == kLoss) {
        output_gradients.push_back(at::empty_like(values_.at(kLoss)));
      } else {
        output_gradients.push_back(gradients_[name]);
        gradients_.erase(name);
      }
    }
    auto& memory = core::meta_memory();
    const int64_t before = memory.live();
    memory.reset_peak();
    const auto gradients = segment.backward(std::move(saved_[index]), output_gradients,
                                            leaves_of(segment));
    shape.backward_temporary_bytes =
        std::max<int64_t>(0, memory.peak() - before - input_gradient_bytes);
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (gradients[i].defined()) gradients_[segment.inputs()[i]] = gradients[i];
    }
  }

 private:
  at::Tensor like_crossing(const std::string& name) const {
    return at::empty_like(crossing_.at(name));
  }

  // With the inputs that do not belong to the batch.
  int64_t bytes_kept(const Segment& segment, TensorList& inputs,
                     Segment::Saved* kept) const {
    std::vector<at::Tensor*> places;
    if (kept != nullptr) places = kept->tensors();
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!batch_.contains(segment.inputs()[i])) places.push_back(&inputs[i]);
    }
    return storage_bytes(places);
  }

  // On a forward and output gradients of its own, which the rest may keep.
  void measure_halves(Segment& segment, const TensorList& inputs,
                      plan::SegmentShape& shape) const {
    const auto leaves = leaves_of(segment);
    auto& memory = core::meta_memory();
    const int64_t before = memory.live();
    std::unique_ptr<Segment::Saved> saved, rest;
    TensorList gradients;
    for (const auto& output : segment.forward(inputs, leaves, &saved)) {
      gradients.push_back(at::empty_like(output));
    }
    const int64_t with_saved = memory.live();
    memory.reset_peak();
    auto results = segment.backward_input(std::move(saved), gradients, leaves, &rest);
    shape.input_half_temporary_bytes =
        std::max<int64_t>(0, memory.peak() - with_saved - new_bytes(results, {}));
    gradients.clear();
    results.clear();
    const int64_t with_rest = memory.live();
    shape.rest_bytes = with_rest - before;
    memory.reset_peak();
    segment.backward_weight(std::move(rest), leaves);
    shape.weight_half_temporary_bytes = std::max<int64_t>(0, memory.peak() - with_rest);
  }

  TensorList leaves_of(const Segment& segment) const {
    TensorList leaves;
    for (const auto& reference : segment.parameters()) {
      leaves.push_back(groups_[static_cast<size_t>(reference.group)]
                           ->leaves()[static_cast<size_t>(reference.slot)]);
    }
    return leaves;
  }

  const Model& model_;
  const Stages& stages_;
  const Values& crossing_;
  const Values& batch_;
  std::vector<std::unique_ptr<WholeGroup>> groups_;
  Values values_;
  Values gradients_;
  std::vector<std::unique_ptr<Segment::Saved>> saved_;
};

// All values of a forward of the model.
Values run(const Model& model, const GroupOptions& options, const Values& batch) {
  const auto meta = at::TensorOptions(at::kMeta).dtype(options.compute_dtype);
  std::vector<TensorList> parameters;
  for (const auto& group : model.groups) {
    auto& tensors = parameters.emplace_back();
    for (const auto& spec : group.parameters) {
      tensors.push_back(at::empty(spec.shape, meta));
    }
  }
  return forward(model, parameters, batch);
}

}  // namespace

plan::StepShape measure(const Model& whole, const Model& part, const Stages& stages,
                        const GroupOptions& options, const Values& batch,
                        plan::StepShape shape) {
  TORCH_CHECK_VALUE(!whole.own_forward,
                    "measure: a model with a forward of its own has "
                    "no segments that can be run one by one");
  TORCH_CHECK_VALUE(shape.segments.size() == part.segments.size(),
                    "measure: the shape ", "has ", shape.segments.size(),
                    " segments, the part ", part.segments.size());
  TORCH_CHECK_VALUE(!whole.segments.empty() &&
                        std::count(whole.segments.back()->outputs().begin(),
                                   whole.segments.back()->outputs().end(), kLoss) == 1,
                    "measure: the last segment has no value 'loss'");
  const c10::AutoGradMode off(false);
  const auto crossing = stages.shapes.empty() ? Values() : run(whole, options, batch);
  for (size_t i = 0; i < stages.shapes.size(); ++i) {
    TensorList received;
    for (const auto& name : stages.inputs[i]) received.push_back(crossing.at(name));
    shape.stages[i].received_bytes =
        stages.shapes[i].receives ? new_bytes(received, {}) : 0;
  }
  TensorList first_inputs;
  for (const auto& name : whole.segments.front()->inputs()) {
    first_inputs.push_back(batch.at(name));
  }
  shape.microbatch_bytes = new_bytes(first_inputs, {});
  Chain chain(part, stages, options, batch, crossing);
  for (size_t i = 0; i < shape.segments.size(); ++i)
    chain.forward(i, shape.segments[i]);
  for (size_t i = shape.segments.size(); i-- > 0;) {
    int64_t inputs = i == 0 ? 0 : shape.segments[i - 1].output_bytes;
    for (const auto& stage : shape.stages) {
      if (stage.first_segment != static_cast<int64_t>(i)) continue;
      if (stage.receives) inputs = stage.received_bytes;
    }
    chain.backward(i, inputs, shape.segments[i]);
  }
  TensorList all;
  for (const auto& [name, tensor] : batch) all.push_back(tensor);
  shape.constant_bytes =
      new_bytes(whole.constants, {}) +
      shape.num_microbatches * (new_bytes(all, {}) - shape.microbatch_bytes);
  return shape;
}

}  // namespace torchtitan::nn
