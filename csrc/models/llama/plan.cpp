#include "models/llama/plan.h"

#include "base/errors.h"

namespace torchtitan::models::llama {

std::span<const parallel::tensor::Rule> tensor_rules() {
  static constexpr parallel::tensor::Rule kRules[] = {
      {"attention.wq.weight", 0},    {"attention.wk.weight", 0},
      {"attention.wv.weight", 0},    {"attention.wo.weight", 1},
      {"feed_forward.w1.weight", 0}, {"feed_forward.w2.weight", 1},
      {"feed_forward.w3.weight", 0}, {"tok_embeddings.weight", 0},
      {"output.weight", 0}};
  return kRules;
}

void check_tensor_parallel(const Args& args, int64_t ranks) {
  const auto check = [&](const char* name, int64_t value) {
    base::check_value(value % ranks == 0,
                      "tensor_parallel_degree: expected a divisor of ", name, " = ",
                      value, ", found ", ranks);
  };
  check("n_kv_heads", args.n_kv_heads);  // which divides n_heads
  check("hidden_dim", args.hidden_dim);
}

}  // namespace torchtitan::models::llama
