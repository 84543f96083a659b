// What a block computes and exchanges, without doing it.
#include <ATen/OpMathType.h>

#include <algorithm>

#include "models/llama/block.h"
#include "ops/fused.h"

namespace torchtitan::models::llama {

using nn::TensorList;
namespace fused = ops::fused;

nn::Flops Block::flops(const TensorList& inputs, const TensorList& w) const {
  int64_t weights = 0;
  for (const BlockSlot slot : {kWq, kWk, kWv, kWo, kW1, kW2, kW3}) {
    weights += w[slot].numel();
  }
  const int64_t length = inputs[0].size(1) * axis_.size();
  const int64_t keys = length * attention_->ranks();
  const int64_t of_token = 2 * weights + 4 * w[kWq].size(0) * keys;
  const int64_t forward = inputs[0].size(0) * length * of_token;
  int64_t again = forward;
  if (is_hand_written(inputs[0], w)) {
    again -= 2 * inputs[0].size(0) * length * w[kW2].numel();
    const auto all = operations({inputs[0].size(0), length, inputs[0].scalar_type()});
    for (size_t i = 0; i < all.size(); ++i) again -= keeps(i) ? all[i].flops : 0;
  }
  return {.forward = forward,
          .backward = 2 * forward,
          .recompute = again,
          .weight = 2 * inputs[0].size(0) * length * weights};
}

std::vector<nn::Operation> Block::operations(const nn::BatchShape& batch) const {
  using Kind = nn::Operation::Kind;
  const int64_t tokens = batch.rows * batch.length;
  const int64_t query = args_.n_heads * args_.head_dim() / axis_.size();
  const int64_t key = args_.n_kv_heads * args_.head_dim() / axis_.size();
  const int64_t hidden = args_.hidden_dim / axis_.size();
  const auto size = static_cast<int64_t>(c10::elementSize(batch.dtype));
  const auto wide =
      static_cast<int64_t>(c10::elementSize(at::toOpMathType(batch.dtype)));
  const auto product = [&](const char* name, BlockSlot slot, int64_t width) {
    return nn::Operation{.name = name,
                         .kind = Kind::kProduct,
                         .weight = slot,
                         .is_summed_over_ranks = false,
                         .bytes = tokens * width * size,
                         .flops = 2 * tokens * width * args_.dim};
  };
  std::vector<nn::Operation> all(kNumResults);
  all[kQ] = product("attention.wq", kWq, query);
  all[kK] = product("attention.wk", kWk, key);
  all[kV] = product("attention.wv", kWv, key);
  all[kAttended] = {.name = "attention",
                    .kind = Kind::kAttention,
                    .weight = std::nullopt,
                    .is_summed_over_ranks = false,
                    .bytes = tokens * (query * size + query / args_.head_dim() * wide),
                    .flops = 4 * tokens * batch.length * attention_->ranks() * query};
  all[kH] = product("attention.wo", kWo, args_.dim);
  all[kH].is_summed_over_ranks = axis_.is_split();
  all[kH].bytes /= axis_.size();
  all[kH].flops = 2 * tokens * query * args_.dim;
  all[kGate] = product("feed_forward.w1", kW1, hidden);
  all[kUp] = product("feed_forward.w3", kW3, hidden);
  return all;
}

nn::Exchanges Block::exchanges(const TensorList& inputs, const TensorList& w) const {
  using Verb = nn::TensorAxis::Verb;
  const auto& x = inputs[0];
  const auto note = [&](std::vector<plan::Exchange>& exchanges, Verb verb) {
    axis_.note(exchanges, verb, x.numel() * axis_.size(), x.options());
  };
  nn::Exchanges result;
  const nn::AttentionSizes sizes = {.rows = x.size(0),
                                    .tokens = x.size(1) * axis_.size(),
                                    .query_width = w[kWq].size(0),
                                    .key_width = w[kWk].size(0),
                                    .options = x.options()};
  const auto append = [](std::vector<plan::Exchange>& to,
                         const std::vector<plan::Exchange>& more) {
    to.insert(to.end(), more.begin(), more.end());
  };
  append(result.forward,
         attention_->enter_exchanges(sizes, sizes.query_width + 2 * sizes.key_width));
  append(result.forward, attention_->forward_exchanges(sizes));
  append(result.backward, attention_->backward_exchanges(sizes));
  append(result.backward_input, attention_->backward_exchanges(sizes));
  for (int half = 0; half < 2; ++half) {
    note(result.forward, Verb::kGatherStretches);
    note(result.forward, Verb::kSumScatterStretches);
    note(result.backward, Verb::kGatherStretches);
    note(result.backward, Verb::kGather);  // the normed tokens
    note(result.backward, Verb::kSumScatterStretches);
    note(result.backward_input, Verb::kGatherStretches);
    note(result.backward_input, Verb::kSumScatterStretches);
    note(result.backward_weight, Verb::kGather);
  }
  // The gradients of the norms travel together, or autograd sends one by one.
  const bool together = is_hand_written(x, w);
  const auto again = [&](std::initializer_list<Result> results) {
    return !together || !std::all_of(results.begin(), results.end(),
                                     [&](Result each) { return keeps(each); });
  };
  const int64_t entering = (again({kQ}) ? sizes.query_width : 0) +
                           (again({kK}) ? sizes.key_width : 0) +
                           (again({kV}) ? sizes.key_width : 0);
  if (entering > 0) {
    note(result.recompute, Verb::kGatherStretches);
    append(result.recompute, attention_->enter_exchanges(sizes, entering));
  }
  if (again({kAttended})) {
    append(result.recompute, attention_->forward_exchanges(sizes));
  }
  if (again({kH})) note(result.recompute, Verb::kSumScatterStretches);
  if (again({kGate, kUp})) note(result.recompute, Verb::kGatherStretches);
  if (!together) note(result.recompute, Verb::kSumScatterStretches);
  const auto& norm = w[kFfnNorm];
  const auto options = together ? norm.grad().options() : fused::wide_options(norm);
  for (int i = 0; i < (together ? 1 : 2); ++i) {
    const int64_t numel = norm.numel() * (together ? 2 : 1);
    axis_.note(result.backward, Verb::kSum, numel, options);
    axis_.note(together ? result.backward_input : result.backward_weight, Verb::kSum,
               numel, options);
  }
  return result;
}

}  // namespace torchtitan::models::llama
