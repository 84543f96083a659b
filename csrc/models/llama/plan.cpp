#include "models/llama/plan.h"

#include <numeric>
#include <sstream>

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

std::string tensor_parallel_misfit(const Args& args, int64_t ranks) {
  // n_kv_heads divides n_heads.
  const int64_t common = std::gcd(args.n_kv_heads, args.hidden_dim);
  if (common % ranks == 0) return "";
  std::ostringstream text;
  text << "expected a divisor of n_kv_heads = " << args.n_kv_heads
       << " and of hidden_dim = " << args.hidden_dim << " (";
  for (int64_t fits = 1; fits <= common; ++fits) {
    if (common % fits == 0) text << (fits > 1 ? ", " : "") << fits;
  }
  text << "), found " << ranks;
  return text.str();
}

}  // namespace torchtitan::models::llama
