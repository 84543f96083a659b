#include "models/llama/args.h"

#include "base/errors.h"

namespace torchtitan::models::llama {

int64_t Args::num_params() const {
  const int64_t attention = dim * head_dim() * (2 * n_heads + 2 * n_kv_heads);
  const int64_t feed_forward = 3 * dim * hidden_dim;
  const int64_t block = attention + feed_forward + 2 * dim;
  const int64_t embeddings = (tied_embeddings ? 1 : 2) * num_embedding_params();
  return n_layers * block + embeddings + dim;
}

int64_t Args::flops_per_token(int64_t seq_len) const {
  const int64_t head_weight = tied_embeddings ? num_embedding_params() : 0;
  const int64_t in_products = num_params() - num_embedding_params() + head_weight;
  return 6 * in_products + 12 * n_layers * n_heads * head_dim() * seq_len;
}

void Args::validate() const {
  using base::check_value;
  const auto positive = [](const char* name, int64_t value) {
    check_value(value > 0, "llama3 ", name, ": expected a positive number, found ",
                value);
  };
  positive("dim", dim);
  positive("n_layers", n_layers);
  positive("n_heads", n_heads);
  positive("n_kv_heads", n_kv_heads);
  positive("vocab_size", vocab_size);
  positive("hidden_dim", hidden_dim);
  positive("max_seq_len", max_seq_len);
  check_value(dim % n_heads == 0 && head_dim() % 2 == 0,
              "llama3 dim: expected n_heads = ", n_heads,
              " heads of an even width, found dim = ", dim);
  check_value(n_heads % n_kv_heads == 0,
              "llama3 n_kv_heads: expected a divisor of n_heads = ", n_heads,
              ", found ", n_kv_heads);
  check_value(norm_eps > 0, "llama3 norm_eps: expected a positive number, found ",
              norm_eps);
  check_value(rope_theta > 0, "llama3 rope_theta: expected a positive number, found ",
              rope_theta);
}

}  // namespace torchtitan::models::llama
