#include "train/mistakes.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <map>

#include "train/differences.h"
#include "train/equality_table.h"

namespace torchtitan::train::testing {
namespace {

using collectives::Group;
using nn::TensorList;

class MistakenSegment final : public nn::Segment {
 public:
  MistakenSegment(std::shared_ptr<Segment> inner, SegmentMistake mistake)
      : Segment(inner->name(), inner->inputs(), inner->outputs(), inner->parameters()),
        inner_(std::move(inner)), mistake_(std::move(mistake)) {}

  TensorList forward(const TensorList& inputs, const TensorList& parameters,
                     std::unique_ptr<Saved>* saved) override {
    last_inputs_ = inputs;
    auto wrong = inputs;
    if (mistake_.inputs) mistake_.inputs(wrong);
    auto outputs = inner_->forward(wrong, parameters, saved);
    if (mistake_.output == 1) return outputs;
    for (auto& output : outputs) output = output.mul(mistake_.output);
    return outputs;
  }

  TensorList backward(std::unique_ptr<Saved> saved, const TensorList& output_gradients,
                      const TensorList& parameters) override {
    if (mistake_.before_backward) mistake_.before_backward(parameters);
    const auto wrong = scaled(output_gradients);
    auto gradients = inner_->backward(std::move(saved), wrong, parameters);
    if (mistake_.after_backward) {
      mistake_.after_backward(last_inputs_, output_gradients, parameters);
    }
    return gradients;
  }

  TensorList backward_input(std::unique_ptr<Saved> saved,
                            const TensorList& output_gradients,
                            const TensorList& parameters,
                            std::unique_ptr<Saved>* rest) override {
    if (mistake_.before_backward) mistake_.before_backward(parameters);
    return inner_->backward_input(std::move(saved), scaled(output_gradients),
                                  parameters, rest);
  }
  void backward_weight(std::unique_ptr<Saved> rest,
                       const TensorList& parameters) override {
    inner_->backward_weight(std::move(rest), parameters);
  }
  bool weight_half_reads_parameters() const override {
    return inner_->weight_half_reads_parameters();
  }
  nn::Flops flops(const TensorList& inputs,
                  const TensorList& parameters) const override {
    return inner_->flops(inputs, parameters);
  }

 private:
  TensorList scaled(TensorList gradients) const {
    for (auto& gradient : gradients) {
      if (mistake_.gradient != 1 && gradient.defined()) {
        gradient = gradient.mul(mistake_.gradient);
      }
    }
    return gradients;
  }

  std::shared_ptr<Segment> inner_;
  SegmentMistake mistake_;
  TensorList last_inputs_;
};

class MistakenKernel final : public nn::AttentionKernel {
 public:
  MistakenKernel(std::shared_ptr<AttentionKernel> inner, KernelMistake mistake)
      : inner_(std::move(inner)), mistake_(std::move(mistake)) {}

  int64_t ranks() const override { return inner_->ranks(); }
  nn::TokenPlaces places(int64_t tokens, const at::Tensor& starts,
                         at::Device device) const override {
    auto places = inner_->places(tokens, starts, device);
    if (mistake_.rotation) mistake_.rotation(places);
    return places;
  }
  // Of the differentiable form, which nothing here uses.
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const nn::TokenPlaces& here) const override {
    return inner_->attend(q, k, v, here);
  }
  Operands enter(Operands x) const override { return inner_->enter(x); }
  Result forward(const Operands& x, const nn::TokenPlaces& here) const override {
    return inner_->forward({x.q.mul(mistake_.q), x.k, x.v}, of_attention(here));
  }
  Operands backward(const Operands& x, const nn::TokenPlaces& here,
                    const Result& result, const at::Tensor& d_o) const override {
    const auto d = inner_->backward({x.q.mul(mistake_.q), x.k, x.v}, of_attention(here),
                                    result, d_o);
    return {d.q.mul(mistake_.q * mistake_.d_q), d.k.mul(mistake_.d_k),
            d.v.mul(mistake_.d_v)};
  }
  std::vector<plan::Exchange> enter_exchanges(const nn::AttentionSizes& sizes,
                                              int64_t width) const override {
    return inner_->enter_exchanges(sizes, width);
  }
  std::vector<plan::Exchange> forward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    return inner_->forward_exchanges(sizes);
  }
  std::vector<plan::Exchange> backward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    return inner_->backward_exchanges(sizes);
  }

 private:
  // Told anew: what is wrong for the rotation only is right here.
  nn::TokenPlaces of_attention(const nn::TokenPlaces& here) const {
    auto places =
        inner_->places(here.own.size(0), here.document_starts, here.own.device());
    if (mistake_.attention) mistake_.attention(places);
    return places;
  }

  std::shared_ptr<AttentionKernel> inner_;
  KernelMistake mistake_;
};

class Changed final : public collectives::Work {
 public:
  Changed(std::shared_ptr<Work> inner, at::Tensor out, AtEnd change)
      : inner_(std::move(inner)), out_(std::move(out)), change_(std::move(change)) {}
  bool completed() override { return !inner_ || inner_->completed(); }
  void wait() override {
    if (inner_) inner_->wait();
    if (change_) std::exchange(change_, nullptr)(out_);
  }

 private:
  std::shared_ptr<Work> inner_;
  at::Tensor out_;
  AtEnd change_;
};

class MistakenGroup final : public collectives::Backend {
 public:
  MistakenGroup(const Group& group, ChangeCall change)
      : group_(group), change_(std::move(change)) {}

  int64_t rank() const override { return group_.rank(); }
  int64_t size() const override { return group_.size(); }
  std::shared_ptr<collectives::Work> start(collectives::Operation operation) override {
    auto at_end = change_(group_, operation, count_[operation.verb]++);
    auto out = operation.out;
    auto work = group_.backend()->start(std::move(operation));
    if (!at_end) return work;
    return std::make_shared<Changed>(std::move(work), std::move(out),
                                     std::move(at_end));
  }

 private:
  Group group_;
  ChangeCall change_;
  std::map<collectives::Verb, int64_t> count_;
};

}  // namespace

void expect_noticed(const std::string& layout_name, const Problem& problem,
                    const Layout& layout, const std::vector<Mistake>& mistakes) {
  const auto reference = run_reference(problem);
  ASSERT_EQ(difference(run_step(problem, layout), reference), "");
  for (const auto& [name, changes] : mistakes) {
    const auto found = difference(run_step(problem, layout, changes), reference);
    EXPECT_NE(found, "") << layout_name << ": " << name;
    record_mutant({.mistake = name, .layout = layout_name, .noticed = !found.empty()});
  }
}

Changes around_segment(const std::string& name, MakeMistake make) {
  return {.part = [=](nn::Model& part, const Group& tensor) {
    for (auto& segment : part.segments) {
      if (segment->name() != name) continue;
      segment = std::make_shared<MistakenSegment>(segment, make(part, tensor));
    }
  }};
}

Changes around_segment(const std::string& name, SegmentMistake mistake) {
  return around_segment(name, [=](const nn::Model&, const Group&) { return mistake; });
}

Changes around_kernel(const KernelMistake& mistake) {
  return {.kernel = [=](const Changes::Kernel& kernel, const Group&) {
    return std::make_shared<MistakenKernel>(kernel, mistake);
  }};
}

Changes around_calls(ChangeCall change) {
  return {.group = [=](const Group& group, int64_t) {
    return Group(group.name(), std::make_shared<MistakenGroup>(group, change));
  }};
}

const nn::ParameterSpec& find_parameter(const nn::Model& part,
                                        const std::string& name) {
  for (const auto& group : part.groups) {
    for (const auto& parameter : group.parameters) {
      if (parameter.name == name) return parameter;
    }
  }
  TORCH_CHECK(false, "no parameter ", name);
}

}  // namespace torchtitan::train::testing
