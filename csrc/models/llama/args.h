// Sizes of a Llama 3 model (Grattafiori et al. 2024).
#pragma once

#include <cstdint>
#include <optional>

#include "ops/rope.h"

namespace torchtitan::models::llama {

struct Args {
  int64_t dim;  // width of the residual stream
  int64_t n_layers;
  int64_t n_heads;     // query heads; dim / n_heads is the head dim
  int64_t n_kv_heads;  // key and value heads; divides n_heads
  int64_t vocab_size;
  int64_t hidden_dim;  // width of the feed-forward layer
  double norm_eps;
  double rope_theta;
  std::optional<ops::RopeScaling> rope_scaling;
  int64_t max_seq_len;   // tokens; length of the rotary table
  bool depth_init;       // initial std of block outputs falls with depth
  bool tied_embeddings;  // the head uses the embedding's weight
  // Attention stays within documents, whose first tokens the batch tells.
  bool document_masks = false;

  int64_t head_dim() const { return dim / n_heads; }

  // Parameters stored, tied ones once.
  int64_t num_params() const;
  // Parameters of the token embedding, which take part in no matrix product.
  int64_t num_embedding_params() const { return vocab_size * dim; }
  // Training flops (forward and backward) for one token in sequences of `seq_len`:
  // 6 per parameter in products, and attention without the causal saving
  // (Chowdhery et al. 2022, appendix B).
  int64_t flops_per_token(int64_t seq_len) const;

  // Throws ValueError naming the field, what was expected and what was found.
  void validate() const;
};

}  // namespace torchtitan::models::llama
