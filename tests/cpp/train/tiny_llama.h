// A tiny Llama 3 in float64, run as the training step runs it in any layout of ranks
// (threads), and as plain autograd over one process: the two must agree.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "models/llama/args.h"
#include "nn/tensor_axis.h"
#include "parallel/apply.h"
#include "parallel/context/attention.h"

namespace torchtitan::train::testing {

using NamedTensors = std::map<std::string, at::Tensor>;

struct Layout {
  int64_t shards = 1;
  int64_t replicas = 1;
  int64_t context = 1;
  parallel::context::Method method = parallel::context::Method::kRing;
  parallel::context::Balance balance = parallel::context::Balance::kHeadTail;
  int64_t tensor = 1;
  bool loss_parallel = true;
  nn::Overlap overlap = nn::Overlap::kNone;
  plan::Reshard reshard = plan::Reshard::kDefault;
  int64_t pipeline = 1;
  std::string schedule = "1F1B";
  int64_t stages_per_rank = 1;
  int64_t rounds = 1;  // of the schedule; the microbatches are divided among them
  int64_t num_microbatches = 1;
  bool recompute = false;  // every block; otherwise as the next one says
  // Its batch is that of the layout.
  parallel::activation_checkpoint::Policy checkpoint = {
      parallel::activation_checkpoint::Policy::Mode::kNone};
  std::shared_ptr<nn::HostStore> host = nullptr;  // of every rank
  int64_t overlap_depth = 1;
  bool early_optimizer_step = false;

  int64_t num_data_ranks() const { return shards * replicas; }
  // That see different tokens.
  int64_t num_loss_ranks() const { return num_data_ranks() * context; }
  int64_t num_ranks() const { return pipeline * num_loss_ranks() * tensor; }
};

struct Problem {
  models::llama::Args args = {.dim = 12,
                              .n_layers = 2,
                              .n_heads = 2,
                              .n_kv_heads = 1,
                              .vocab_size = 257,
                              .hidden_dim = 20,
                              .norm_eps = 1e-5,
                              .rope_theta = 1e4,
                              .rope_scaling = std::nullopt,
                              .max_seq_len = 8,
                              .depth_init = true,
                              .tied_embeddings = false};
  int64_t rows = 12;  // of the global batch; divisible by ranks x microbatches
  int64_t seq_len = 8;
  // Rows [first, last) of the batch have no valid label.
  int64_t first_masked = 0;
  int64_t last_masked = 0;
  int64_t num_steps = 1;
};

// With sizes that two and four tensor ranks divide, all but the vocabulary.
Problem tensor_problem();
// With sizes that up to four context ranks and two tensor ranks divide.
Problem context_problem();
// The problem with attention within documents.
Problem with_documents(Problem problem);

struct Result {
  double loss = 0;  // of the last step
  double grad_norm = 0;
  NamedTensors gradients;      // whole, of the last step, before clipping
  NamedTensors weights;        // whole, after the last step
  bool replicas_equal = true;  // all of the above on all ranks, bit by bit
  plan::StepShape shape;       // of rank 0
  plan::Program program;
  std::vector<std::pair<plan::StepShape, plan::Program>> plans;  // by rank
};

// Called with every group of every rank; what it returns is used instead.
using Wrap =
    std::function<collectives::Group(const collectives::Group& group, int64_t rank)>;

// Row r of the global batch goes to data rank (r / B) % ranks, microbatch
// r / (B * ranks), B = rows / (ranks * microbatches), its tokens to the context ranks
// as attention deals them out; rank order is pipeline, replicas, shards, context,
// tensor, slow to fast. Segments are divided evenly among the stages. Parameters are
// sharded over shards x context. Gradients and weights are put together from all ranks'
// shards; what a rank holds of which another has written the same elements is compared.
// `kernel`, where given, is called with the attention kernel of every rank likewise.
using WrapKernel = std::function<std::shared_ptr<nn::AttentionKernel>(
    const std::shared_ptr<nn::AttentionKernel>& kernel)>;
Result run_step(const Problem& problem, const Layout& layout, const Wrap& wrap = {},
                const WrapKernel& kernel = {});

// The same by nn::forward over the whole batch, autograd and the AdamW definition.
Result run_reference(const Problem& problem);

// The first thing in which a result is not that of the reference; empty where it is:
// loss, norm and gradients to 1e-10 of the reference's 2-norm (1e-12 where that is 0),
// weights to 1e-9, replicas bit by bit.
std::string difference(const Result& result, const Result& reference);

// By how much a result is off, relative to the reference: gradients in the 2-norm of
// each tensor, absolute where that is 0, and the worst of all tensors.
struct RelativeErrors {
  double loss = 0;
  double grad_norm = 0;
  double gradient = 0;
};
RelativeErrors relative_errors(const Result& result, const Result& reference);

}  // namespace torchtitan::train::testing
