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
#include "optim/optimizer.h"
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

// What a run does otherwise, on every rank: where given, a function is called with a
// part of the run, and what it returns takes that part's place.
struct Changes {
  using Group = collectives::Group;
  using NamedBatch = std::map<std::string, at::Tensor>;
  // Of several ranks, all axes.
  std::function<Group(const Group& group, int64_t rank)> group = {};
  using Kernel = std::shared_ptr<nn::AttentionKernel>;
  std::function<Kernel(const Kernel& kernel, const Group& context)> kernel = {};
  // The rank's tokens of a microbatch.
  std::function<NamedBatch(const NamedBatch& whole, NamedBatch dealt,
                           const Group& context)>
      deal = {};
  // Changes the rank's segments and groups in place.
  std::function<void(nn::Model& part, const Group& tensor)> part = {};
  using Optimizer = std::shared_ptr<optim::Optimizer>;
  std::function<Optimizer(const Optimizer& optimizer)> optimizer = {};
};

// Row r of the global batch goes to data rank (r / B) % ranks, microbatch
// r / (B * ranks), B = rows / (ranks * microbatches), its tokens to the context ranks
// as attention deals them out; rank order is pipeline, replicas, shards, context,
// tensor, slow to fast. Segments are divided evenly among the stages. Parameters are
// sharded over shards x context. Gradients and weights are put together from all ranks'
// shards; what a rank holds of which another has written the same elements is compared.
Result run_step(const Problem& problem, const Layout& layout,
                const Changes& changes = {});

// The same by nn::forward over the whole batch, autograd and the AdamW definition.
Result run_reference(const Problem& problem);

}  // namespace torchtitan::train::testing
