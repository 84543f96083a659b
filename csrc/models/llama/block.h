// One pre-norm transformer block: grouped-query attention with rotary positions, then
// SwiGLU feed-forward, each added to the residual stream.
//
// `compute` is the definition. On a CPU, bfloat16, float32 and float64 run hand-written
// passes: they keep only what is dear to compute again, reuse their buffers and add
// each weight gradient straight into its buffer.
//
// Which tokens meet in attention, and at which positions they stand, is the attention
// kernel's affair (nn/attention_kernel.h).
//
// Over a tensor axis each rank has some of the heads and of the feed-forward width, and
// outside of the products some of the tokens (nn/tensor_axis.h): both products of a
// half begin with a gather of the normed tokens and end with a sum that deals tokens
// out.
#pragma once

#include <memory>

#include "models/llama/args.h"
#include "nn/attention_kernel.h"
#include "nn/segment.h"
#include "nn/tensor_axis.h"
#include "nn/weight_products.h"

namespace torchtitan::models::llama {

// Slots of a block's parameters.
enum BlockSlot : size_t { kWq, kWk, kWv, kWo, kW1, kW2, kW3, kAttentionNorm, kFfnNorm };

class Block final : public nn::AutogradSegment {
 public:
  Block(std::string name, std::vector<nn::ParameterRef> parameters, const Args& args,
        ops::RopeTable rope, std::shared_ptr<const nn::AttentionKernel> attention,
        nn::TensorAxis axis);

  // h [B, s, dim] -> h; with args.document_masks also document_starts [B, S] int64:
  // for each position of the whole sequence the first one of its document.
  nn::TensorList compute(const nn::TensorList& inputs,
                         const nn::TensorList& parameters) const override;
  nn::TensorList forward(const nn::TensorList& inputs, const nn::TensorList& parameters,
                         std::unique_ptr<Saved>* saved) override;
  // Leaves out the last product and what was kept. The differentiable form keeps
  // nothing.
  nn::TensorList forward_for_recompute(const nn::TensorList& inputs,
                                       const nn::TensorList& parameters,
                                       std::unique_ptr<Saved>* kept) override;
  void recompute(const nn::TensorList& inputs, const nn::TensorList& parameters,
                 std::unique_ptr<Saved> kept, std::unique_ptr<Saved>* saved) override;
  std::vector<nn::Operation> operations(const nn::BatchShape& batch) const override;
  nn::TensorList backward(std::unique_ptr<Saved> saved,
                          const nn::TensorList& output_gradients,
                          const nn::TensorList& parameters) override;
  // The second half has all products but those of the norms.
  nn::TensorList backward_input(std::unique_ptr<Saved> saved,
                                const nn::TensorList& output_gradients,
                                const nn::TensorList& parameters,
                                std::unique_ptr<Saved>* rest) override;
  bool weight_half_reads_parameters() const override { return false; }
  void backward_weight(std::unique_ptr<Saved> rest,
                       const nn::TensorList& parameters) override;
  nn::Flops flops(const nn::TensorList& inputs,
                  const nn::TensorList& parameters) const override;
  nn::Exchanges exchanges(const nn::TensorList& inputs,
                          const nn::TensorList& parameters) const override;

 private:
  struct Kept;
  // The operations whose results backward needs, as operations() numbers them.
  enum Result : size_t { kQ, kK, kV, kAttended, kH, kGate, kUp, kNumResults };

  // Computes what `kept` lacks of all that backward needs. Returns the place of a
  // normed input, free to be used.
  at::Tensor complete(Kept& kept, const nn::TensorList& inputs,
                      const nn::TensorList& parameters) const;
  nn::TensorList finish(const Kept& kept, const at::Tensor& gated,
                        const at::Tensor& output,
                        const nn::TensorList& parameters) const;
  nn::TensorList backward(Kept& kept, const at::Tensor& dy,
                          const nn::TensorList& parameters,
                          nn::WeightProducts& products) const;
  nn::TokenPlaces places(const at::Tensor& x, const at::Tensor& document_starts) const;
  bool is_hand_written(const at::Tensor& x, const nn::TensorList& parameters) const;
  at::Tensor heads(const at::Tensor& x) const;

  Args args_;
  ops::RopeTable rope_;
  std::shared_ptr<const nn::AttentionKernel> attention_;
  nn::TensorAxis axis_;
};

}  // namespace torchtitan::models::llama
