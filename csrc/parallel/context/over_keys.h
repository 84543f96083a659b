// Attention of this rank's queries to one rank's keys after another, by the kernels of
// ops/fused_attention.h where they take the tensors, else by tensor operations. Shape
// letters as in nn/attention_kernel.h.
#pragma once

#include "nn/attention_kernel.h"
#include "ops/fused_attention.h"

namespace torchtitan::parallel::context {

using Operands = nn::AttentionKernel::Operands;
using Result = nn::AttentionKernel::Result;
using ops::fused::QueryPlaces;

// What both directions of the sum keep: float32 or wider.
at::TensorOptions wide_options(const at::Tensor& x);

class SumOverKeys {
 public:
  // Of `blocks` calls of add().
  SumOverKeys(at::Tensor q, QueryPlaces queries, int64_t blocks);

  void add(const at::Tensor& k, const at::Tensor& v, const at::Tensor& key_positions);
  Result result() const { return {o_, lse_}; }

 private:
  at::Tensor q_;
  QueryPlaces queries_;
  int64_t blocks_;
  int64_t added_ = 0;
  at::Tensor sum_, o_, lse_;
};

class GradientOverKeys {
 public:
  GradientOverKeys(at::Tensor q, QueryPlaces queries, const Result& result,
                   at::Tensor d_o);

  // Adds the gradients of k and v to d_kv [2, B, keys, G, D], wide.
  void add(const at::Tensor& k, const at::Tensor& v, const at::Tensor& key_positions,
           const at::Tensor& d_kv);
  // In the dtype of q.
  at::Tensor dq() const;

 private:
  at::Tensor q_;
  QueryPlaces queries_;
  at::Tensor lse_, delta_, d_o_;
  at::Tensor dq_;  // wide
};

}  // namespace torchtitan::parallel::context
