#include "models/llama/model.h"

#include <cmath>

#include "base/errors.h"
#include "models/llama/block.h"
#include "models/llama/ends.h"
#include "models/llama/plan.h"
#include "ops/rope.h"

namespace torchtitan::models::llama {
namespace {

using nn::Init;
using nn::ParameterRef;

// Cut-offs are absolute: two units, not two deviations.
Init truncated(double std) { return Init::truncated_normal(std, -2.0, 2.0); }

nn::ParameterGroupSpec block_group(const Args& args, int64_t layer) {
  const int64_t depth = args.depth_init ? layer + 1 : args.n_layers;
  const double output_std = 0.02 / std::sqrt(2.0 * static_cast<double>(depth));
  const std::string name = "layers." + std::to_string(layer);
  const int64_t query = args.n_heads * args.head_dim();
  const int64_t key = args.n_kv_heads * args.head_dim();
  return {
      name,
      {{name + ".attention.wq.weight", {query, args.dim}, truncated(0.02)},
       {name + ".attention.wk.weight", {key, args.dim}, truncated(0.02)},
       {name + ".attention.wv.weight", {key, args.dim}, truncated(0.02)},
       {name + ".attention.wo.weight", {args.dim, query}, truncated(output_std)},
       {name + ".feed_forward.w1.weight", {args.hidden_dim, args.dim}, truncated(0.02)},
       {name + ".feed_forward.w2.weight",
        {args.dim, args.hidden_dim},
        truncated(output_std)},
       {name + ".feed_forward.w3.weight",
        {args.hidden_dim, args.dim},
        truncated(output_std)},
       {name + ".attention_norm.weight", {args.dim}, Init::constant(1.0)},
       {name + ".ffn_norm.weight", {args.dim}, Init::constant(1.0)}}};
}

nn::ParameterGroupSpec head_group(const Args& args) {
  nn::ParameterGroupSpec group{"head",
                               {{"norm.weight", {args.dim}, Init::constant(1.0)}}};
  if (!args.tied_embeddings) {
    const double std = 1.0 / std::sqrt(static_cast<double>(args.dim));
    group.parameters.push_back({"output.weight",
                                {args.vocab_size, args.dim},
                                Init::truncated_normal(std, -3 * std, 3 * std)});
  }
  return group;
}

}  // namespace

nn::Model build(const Args& args, const BuildOptions& options) {
  args.validate();
  const auto misfit = tensor_parallel_misfit(args, options.axis.size());
  base::check_value(misfit.empty(), "tensor_parallel_degree: ", misfit);
  const auto rope = ops::rope_table(
      args.max_seq_len, args.head_dim(), args.rope_theta, args.rope_scaling,
      at::TensorOptions().dtype(options.dtype).device(options.device));

  nn::Model model;
  model.constants = {rope.cos, rope.sin};
  model.groups.push_back(
      {"tok_embeddings",
       {{"tok_embeddings.weight", {args.vocab_size, args.dim}, Init::normal(1.0)}}});
  for (int64_t layer = 0; layer < args.n_layers; ++layer) {
    model.groups.push_back(block_group(args, layer));
  }
  model.groups.push_back(head_group(args));
  parallel::tensor::split(model.groups, tensor_rules(), options.axis.group());

  const Vocabulary vocabulary{.first = model.groups[0].parameters[0].offset()[0],
                              .total = args.vocab_size};
  model.segments.push_back(
      std::make_shared<Embedding>(ParameterRef{0, 0}, vocabulary, options.axis));
  for (int64_t layer = 0; layer < args.n_layers; ++layer) {
    const auto& group = model.groups[static_cast<size_t>(layer) + 1];
    std::vector<ParameterRef> parameters;
    for (size_t slot = 0; slot < group.parameters.size(); ++slot) {
      parameters.push_back({layer + 1, static_cast<int64_t>(slot)});
    }
    model.segments.push_back(
        std::make_shared<Block>(group.name, std::move(parameters), args, rope,
                                options.attention->of_layer(layer), options.axis));
  }
  const int64_t last = args.n_layers + 1;
  const ParameterRef output =
      args.tied_embeddings ? ParameterRef{0, 0} : ParameterRef{last, 1};
  model.segments.push_back(
      std::make_shared<HeadSegment>(HeadOptions{.head = options.head,
                                                .norm_eps = args.norm_eps,
                                                .vocabulary = vocabulary,
                                                .axis = options.axis,
                                                .loss_parallel = options.loss_parallel},
                                    ParameterRef{last, 0}, output));
  return model;
}

}  // namespace torchtitan::models::llama
