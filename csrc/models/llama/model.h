// Llama 3: embedding, pre-norm blocks of grouped-query attention with rotary positions
// and SwiGLU feed-forward, final norm and head. Over a tensor axis (nn/tensor_axis.h)
// each segment does a rank's share; other parallelism is attached from outside.
#pragma once

#include "models/llama/args.h"
#include "nn/attention_kernel.h"
#include "nn/model.h"
#include "nn/tensor_axis.h"

namespace torchtitan::models::llama {

// What the last segment gives out.
enum class Head {
  kLoss,    // "loss": sum of cross-entropy over the valid tokens of "labels"
  kLogits,  // "logits": [B, S, vocab_size], for a loss given by the user
};

struct BuildOptions {
  Head head;
  at::Device device;     // of the rotary table
  at::ScalarType dtype;  // of the rotary arithmetic: float32, or float64
  nn::TensorAxis axis;   // the ranks that divide each segment's work
  bool loss_parallel;    // over them, the loss is taken from each one's logits
  std::shared_ptr<const nn::AttentionKernel> attention = nn::local_attention();
};

// Segments: tok_embeddings, layers.0 ... layers.N-1, head.
// Values: "input" [B, S] int64 -> "h" [B, S / ranks, dim] -> "loss" or "logits".
// Groups: tok_embeddings, one per block, and norm with output (only norm when tied).
// Throws ValueError for sizes that do not fit together.
nn::Model build(const Args& args, const BuildOptions& options);

}  // namespace torchtitan::models::llama
