#include "models/llama/model.h"

#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>

#include <cmath>

#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

// Shape letters: B batch, S sequence, E dim, H query heads, G kv heads, D head dim,
// F hidden dim, V vocabulary.
namespace torchtitan::models::llama {
namespace {

using nn::Init;
using nn::ParameterRef;
using nn::TensorList;

class Embedding final : public nn::AutogradSegment {
 public:
  explicit Embedding(ParameterRef weight)
      : AutogradSegment("tok_embeddings", {"input"}, {"h"}, {weight}) {}

  TensorList compute(const TensorList& inputs,
                     const TensorList& parameters) const override {
    return {at::embedding(parameters[0], inputs[0])};
  }
};

class Block final : public nn::AutogradSegment {
 public:
  Block(std::string name, std::vector<ParameterRef> parameters, const Args& args,
        ops::RopeTable rope)
      : AutogradSegment(std::move(name), {"h"}, {"h"}, std::move(parameters)),
        args_(args), rope_(std::move(rope)) {}

  TensorList compute(const TensorList& inputs,
                     const TensorList& parameters) const override {
    const auto& wq = parameters[0];
    const auto& wk = parameters[1];
    const auto& wv = parameters[2];
    const auto& wo = parameters[3];
    const auto& w1 = parameters[4];
    const auto& w2 = parameters[5];
    const auto& w3 = parameters[6];
    const auto& attention_norm = parameters[7];
    const auto& ffn_norm = parameters[8];

    const auto& x_BSE = inputs[0];
    const auto a_BSE = ops::rms_norm(x_BSE, attention_norm, args_.norm_eps);
    const auto q_BSHD = ops::apply_rope(heads(at::linear(a_BSE, wq)), rope_);
    const auto k_BSGD = ops::apply_rope(heads(at::linear(a_BSE, wk)), rope_);
    const auto v_BSGD = heads(at::linear(a_BSE, wv));
    const auto o_BSE = ops::causal_attention(q_BSHD, k_BSGD, v_BSGD).flatten(2);
    const auto h_BSE = x_BSE.add(at::linear(o_BSE, wo));

    const auto f_BSE = ops::rms_norm(h_BSE, ffn_norm, args_.norm_eps);
    const auto g_BSF = ops::swiglu(at::linear(f_BSE, w1), at::linear(f_BSE, w3));
    return {h_BSE.add(at::linear(g_BSF, w2))};
  }

 private:
  at::Tensor heads(const at::Tensor& x) const {
    return x.unflatten(-1, {-1, args_.head_dim()});
  }

  Args args_;
  ops::RopeTable rope_;
};

class HeadSegment final : public nn::AutogradSegment {
 public:
  HeadSegment(Head head, ParameterRef norm, ParameterRef output, double norm_eps)
      : AutogradSegment("head",
                        head == Head::kLoss ? std::vector<std::string>{"h", "labels"}
                                            : std::vector<std::string>{"h"},
                        {head == Head::kLoss ? "loss" : "logits"}, {norm, output}),
        head_(head), norm_eps_(norm_eps) {}

  TensorList compute(const TensorList& inputs,
                     const TensorList& parameters) const override {
    const auto normed_BSE = ops::rms_norm(inputs[0], parameters[0], norm_eps_);
    const auto logits_BSV = at::linear(normed_BSE, parameters[1]);
    if (head_ == Head::kLogits) return {logits_BSV};
    return {ops::cross_entropy_sum(logits_BSV, inputs[1])};
  }

 private:
  Head head_;
  double norm_eps_;
};

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
  const auto rope = ops::rope_table(
      args.max_seq_len, args.head_dim(), args.rope_theta, args.rope_scaling,
      at::TensorOptions().dtype(options.dtype).device(options.device));

  nn::Model model;
  model.groups.push_back(
      {"tok_embeddings",
       {{"tok_embeddings.weight", {args.vocab_size, args.dim}, Init::normal(1.0)}}});
  model.segments.push_back(std::make_shared<Embedding>(ParameterRef{0, 0}));
  for (int64_t layer = 0; layer < args.n_layers; ++layer) {
    model.groups.push_back(block_group(args, layer));
    const auto& group = model.groups.back();
    std::vector<ParameterRef> parameters;
    for (size_t slot = 0; slot < group.parameters.size(); ++slot) {
      parameters.push_back({layer + 1, static_cast<int64_t>(slot)});
    }
    model.segments.push_back(
        std::make_shared<Block>(group.name, std::move(parameters), args, rope));
  }
  const int64_t last = args.n_layers + 1;
  model.groups.push_back(head_group(args));
  const ParameterRef output =
      args.tied_embeddings ? ParameterRef{0, 0} : ParameterRef{last, 1};
  model.segments.push_back(std::make_shared<HeadSegment>(
      options.head, ParameterRef{last, 0}, output, args.norm_eps));
  return model;
}

}  // namespace torchtitan::models::llama
