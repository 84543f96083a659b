#include "models/sleeping/model.h"

#include <thread>
#include <utility>

#include "base/errors.h"

namespace torchtitan::models::sleeping {
namespace {

using nn::TensorList;

class Block final : public nn::Segment {
 public:
  Block(int64_t index, bool is_last, Diary::Clock::duration length,
        std::shared_ptr<Diary> diary)
      : Segment("layers." + std::to_string(index), {index == 0 ? "input" : "h"},
                {is_last ? "loss" : "h"}, {{index, 0}}),
        is_last_(is_last), length_(length), diary_(std::move(diary)) {}

  TensorList forward(const TensorList& inputs, const TensorList& parameters,
                     std::unique_ptr<Saved>* saved) override {
    diary_->work(length_);
    if (saved != nullptr) {
      auto kept = std::make_unique<Kept>();
      kept->shape = inputs[0].sizes().vec();
      kept->dtype = inputs[0].scalar_type();
      *saved = std::move(kept);
    }
    const auto result = inputs[0].add(parameters[0]);
    return {is_last_ ? result.sum() : result};
  }

  TensorList backward(std::unique_ptr<Saved> saved, const TensorList& output_gradients,
                      const TensorList& parameters) override {
    std::unique_ptr<Saved> rest;
    auto gradients =
        backward_input(std::move(saved), output_gradients, parameters, &rest);
    backward_weight(std::move(rest), parameters);
    return gradients;
  }

  TensorList backward_input(std::unique_ptr<Saved> saved,
                            const TensorList& output_gradients,
                            const TensorList& /*parameters*/,
                            std::unique_ptr<Saved>* rest) override {
    diary_->work(length_);
    auto& kept = static_cast<Kept&>(*saved);
    // That of the loss may be of a wider dtype.
    kept.gradient = output_gradients[0].to(kept.dtype).expand(kept.shape);
    TensorList gradients{kept.gradient};
    *rest = std::move(saved);
    return gradients;
  }

  void backward_weight(std::unique_ptr<Saved> rest,
                       const TensorList& parameters) override {
    diary_->work(length_);
    parameters[0].mutable_grad().add_(static_cast<Kept&>(*rest).gradient.sum());
  }

  bool weight_half_reads_parameters() const override { return false; }

  nn::Flops flops(const TensorList& /*inputs*/,
                  const TensorList& /*parameters*/) const override {
    return {};
  }

 private:
  struct Kept final : Saved {
    std::vector<int64_t> shape;
    at::ScalarType dtype;
    at::Tensor gradient;  // of the output and of the input, from the first half on
  };

  bool is_last_;
  Diary::Clock::duration length_;
  std::shared_ptr<Diary> diary_;
};

}  // namespace

void Diary::work(Clock::duration length) {
  const auto begin = Clock::now();
  std::this_thread::sleep_for(length);
  end_ = Clock::now();
  busy_ += end_ - begin;
  if (num_works_++ == 0) begin_ = begin;
}

nn::Model build(int64_t num_blocks, Diary::Clock::duration length,
                const std::shared_ptr<Diary>& diary) {
  base::check_value(num_blocks >= 1, "expected at least one block, got ", num_blocks);
  nn::Model model;
  for (int64_t index = 0; index < num_blocks; ++index) {
    const std::string name = "layers." + std::to_string(index);
    model.groups.push_back({name, {{name + ".weight", {1}, nn::Init::constant(0.0)}}});
    model.segments.push_back(
        std::make_shared<Block>(index, index + 1 == num_blocks, length, diary));
  }
  return model;
}

}  // namespace torchtitan::models::sleeping
