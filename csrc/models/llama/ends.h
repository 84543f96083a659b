// The first and the last segment: token embedding; final norm with the head. As in a
// block, `compute` is the definition, and on a CPU bfloat16, float32 and float64 run
// hand-written passes: the embedding's gradient goes straight into its buffer, and the
// loss never holds the logits of more than a chunk of tokens.
//
// Over a tensor axis each rank has some of the vocabulary, from a first class on, and
// hidden states are some of the tokens (nn/tensor_axis.h). The embedding looks up the
// ids that it has; the loss is taken from each rank's part of the logits.
#pragma once

#include "models/llama/model.h"
#include "nn/segment.h"
#include "nn/tensor_axis.h"
#include "ops/fused.h"

namespace torchtitan::models::llama {

// A rank's part of the vocabulary: the rows of its weight, from class `first` of
// `total` on.
struct Vocabulary {
  int64_t first;
  int64_t total;
};

class Embedding final : public nn::AutogradSegment {
 public:
  Embedding(nn::ParameterRef weight, Vocabulary vocabulary, nn::TensorAxis axis);

  // input [B, S] int64 -> h [B, S / ranks, dim]
  nn::TensorList compute(const nn::TensorList& inputs,
                         const nn::TensorList& parameters) const override;
  nn::TensorList forward(const nn::TensorList& inputs, const nn::TensorList& parameters,
                         std::unique_ptr<Saved>* saved) override;
  nn::TensorList backward(std::unique_ptr<Saved> saved,
                          const nn::TensorList& output_gradients,
                          const nn::TensorList& parameters) override;
  // All in the second half.
  nn::TensorList backward_input(std::unique_ptr<Saved> saved,
                                const nn::TensorList& output_gradients,
                                const nn::TensorList& parameters,
                                std::unique_ptr<Saved>* rest) override;
  bool weight_half_reads_parameters() const override { return false; }
  void backward_weight(std::unique_ptr<Saved> rest,
                       const nn::TensorList& parameters) override;
  // None: rows are looked up.
  nn::Flops flops(const nn::TensorList& inputs,
                  const nn::TensorList& parameters) const override;
  nn::Exchanges exchanges(const nn::TensorList& inputs,
                          const nn::TensorList& parameters) const override;

 private:
  // Rows of the weight for ids [B, S], and where they are this rank's, [B, S, 1].
  struct Rows {
    at::Tensor index;
    at::Tensor is_here;
  };
  Rows rows(const at::Tensor& ids, const at::Tensor& weight) const;

  Vocabulary vocabulary_;
  nn::TensorAxis axis_;
};

struct HeadOptions {
  Head head;
  double norm_eps;
  Vocabulary vocabulary;
  nn::TensorAxis axis;
  // False: the logits of all ranks are put together and every rank takes the loss.
  bool loss_parallel;
};

class HeadSegment final : public nn::AutogradSegment {
 public:
  HeadSegment(const HeadOptions& options, nn::ParameterRef norm,
              nn::ParameterRef output);

  // h [B, S / ranks, dim] and, for the loss, labels [B, S] int64 -> loss, 0-dim, the
  // same on all ranks of the axis; or logits [B, S, vocabulary].
  // The hand-written loss is a float64 sum in any dtype.
  nn::TensorList compute(const nn::TensorList& inputs,
                         const nn::TensorList& parameters) const override;
  nn::TensorList forward(const nn::TensorList& inputs, const nn::TensorList& parameters,
                         std::unique_ptr<Saved>* saved) override;
  nn::TensorList backward(std::unique_ptr<Saved> saved,
                          const nn::TensorList& output_gradients,
                          const nn::TensorList& parameters) override;
  // The hand-written loss has its gradients since its forward: all in the first half.
  nn::TensorList backward_input(std::unique_ptr<Saved> saved,
                                const nn::TensorList& output_gradients,
                                const nn::TensorList& parameters,
                                std::unique_ptr<Saved>* rest) override;
  bool weight_half_reads_parameters() const override { return false; }
  // As if the products for the gradients of the loss were all in backward.
  nn::Flops flops(const nn::TensorList& inputs,
                  const nn::TensorList& parameters) const override;
  nn::Exchanges exchanges(const nn::TensorList& inputs,
                          const nn::TensorList& parameters) const override;

 private:
  bool is_hand_written(const at::Tensor& h, const at::Tensor& output) const;
  // Of logits [C, this rank's vocabulary], which become its gradient if that is asked.
  double chunk_loss(const at::Tensor& logits, const at::Tensor& labels,
                    ops::fused::Gradient gradient) const;

  HeadOptions options_;
};

}  // namespace torchtitan::models::llama
