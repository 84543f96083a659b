// The first and the last segment: token embedding; final norm with the head. As in a
// block, `compute` is the definition, and on a CPU bfloat16, float32 and float64 run
// hand-written passes: the embedding's gradient goes straight into its buffer, and the
// loss never holds the logits of more than a chunk of tokens.
#pragma once

#include "models/llama/model.h"
#include "nn/segment.h"

namespace torchtitan::models::llama {

class Embedding final : public nn::AutogradSegment {
 public:
  explicit Embedding(nn::ParameterRef weight);

  // input [B, S] int64 -> h [B, S, dim]
  nn::TensorList compute(const nn::TensorList& inputs,
                         const nn::TensorList& parameters) const override;
  nn::TensorList forward(const nn::TensorList& inputs, const nn::TensorList& parameters,
                         std::unique_ptr<Saved>* saved) override;
  nn::TensorList backward(std::unique_ptr<Saved> saved,
                          const nn::TensorList& output_gradients,
                          const nn::TensorList& parameters) override;
  // None: rows are looked up.
  nn::Flops flops(const nn::TensorList& inputs,
                  const nn::TensorList& parameters) const override;
};

class HeadSegment final : public nn::AutogradSegment {
 public:
  HeadSegment(Head head, nn::ParameterRef norm, nn::ParameterRef output,
              double norm_eps);

  // h [B, S, dim] and, for the loss, labels [B, S] int64 -> loss, 0-dim; or logits.
  // The hand-written loss is a float64 sum in any dtype.
  nn::TensorList compute(const nn::TensorList& inputs,
                         const nn::TensorList& parameters) const override;
  nn::TensorList forward(const nn::TensorList& inputs, const nn::TensorList& parameters,
                         std::unique_ptr<Saved>* saved) override;
  nn::TensorList backward(std::unique_ptr<Saved> saved,
                          const nn::TensorList& output_gradients,
                          const nn::TensorList& parameters) override;
  // As if the products for the gradients of the loss were all in backward.
  nn::Flops flops(const nn::TensorList& inputs,
                  const nn::TensorList& parameters) const override;

 private:
  Head head_;
  double norm_eps_;
};

}  // namespace torchtitan::models::llama
