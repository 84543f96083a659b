#include "train/tiny_llama.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <mutex>

#include "collectives/local_world.h"
#include "models/llama/model.h"
#include "nn/whole_group.h"
#include "ops/cross_entropy.h"
#include "optim/adam.h"
#include "plan/schedules/forward_only.h"
#include "plan/schedules/registry.h"
#include "train/step.h"

namespace torchtitan::train::testing {
namespace {

using collectives::Group;
using collectives::LocalWorld;

constexpr uint64_t kSeed = 7;
constexpr double kLearningRate = 0.05;
// Not every problem has a larger norm; those of MutationOfScales that clip do.
constexpr double kMaxNorm = 0.5;
constexpr ops::AdamOptions kAdam = {
    .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .decoupled = true};

Batch global_batch(const Problem& problem) {
  const auto count = problem.rows * (problem.seq_len + 1);
  // A fixed scatter of token ids, different in every row.
  const auto ids = at::arange(count, at::kLong)
                       .mul(7919)
                       .add(13)
                       .mul(104729)
                       .remainder(problem.args.vocab_size)
                       .view({problem.rows, problem.seq_len + 1});
  auto labels = ids.narrow(1, 1, problem.seq_len).clone();
  labels.narrow(0, problem.first_masked, problem.last_masked - problem.first_masked)
      .fill_(ops::kIgnoreIndex);
  labels.select(1, 2).slice(0, 0, problem.rows, 3).fill_(ops::kIgnoreIndex);
  Batch batch = {{"input", ids.narrow(1, 0, problem.seq_len).contiguous()},
                 {"labels", labels}};
  if (problem.args.document_masks) {
    // Row r begins a document at tokens 0, 3 + r % 3 and two behind.
    const auto second = at::arange(problem.rows, at::kLong).remainder(3).add(3);
    const auto position = at::arange(problem.seq_len, at::kLong);
    const auto from = [&](const at::Tensor& first) {
      return position.ge(first.unsqueeze(1)).mul(first.unsqueeze(1));
    };
    batch["document_starts"] = at::maximum(from(second), from(second.add(2)));
  }
  return batch;
}

nn::Model build_model(
    const Problem& problem, const nn::TensorAxis& axis = {}, bool loss_parallel = true,
    const std::shared_ptr<nn::AttentionKernel>& attention = nn::local_attention()) {
  return models::llama::build(problem.args, {.head = models::llama::Head::kLoss,
                                             .device = at::kCPU,
                                             .dtype = at::kDouble,
                                             .axis = axis,
                                             .loss_parallel = loss_parallel,
                                             .attention = attention});
}

std::optional<parallel::PipelineOptions> pipeline_options(const Layout& layout,
                                                          const Group& group) {
  if (layout.pipeline == 1) return std::nullopt;
  const auto training = plan::schedules::make_schedule(
      layout.schedule, layout.pipeline, layout.stages_per_rank,
      layout.num_microbatches / layout.rounds);
  return parallel::PipelineOptions{
      .group = group,
      .training = training,
      .rounds = layout.rounds,
      .evaluation = plan::schedules::forward_only(training)};
}

// Segments divided evenly among the stages, the first ones with more.
parallel::pipeline::Part take_part(
    nn::Model model, const std::optional<parallel::PipelineOptions>& pipeline) {
  if (!pipeline) return parallel::whole(std::move(model));
  const auto& rank_of_stage = pipeline->training.rank_of_stage;
  const auto stages = static_cast<int64_t>(rank_of_stage.size());
  const auto segments = static_cast<int64_t>(model.segments.size());
  std::vector<int64_t> sizes;
  for (int64_t s = 0; s < stages; ++s) {
    sizes.push_back(segments / stages + (s < segments % stages ? 1 : 0));
  }
  return parallel::pipeline::take_part(std::move(model), sizes, rank_of_stage,
                                       pipeline->group.rank());
}

nn::GroupOptions options() {
  return {.master_dtype = at::kDouble,
          .compute_dtype = at::kDouble,
          .reduce_dtype = at::kDouble,
          .device = at::Device(at::kCPU)};
}

// Elements of a whole tensor that this shard holds.
at::Tensor box(at::Tensor whole, const nn::ParameterShard& shard) {
  for (int64_t d = 0; d < whole.dim(); ++d) {
    whole = whole.narrow(d, shard.offset[static_cast<size_t>(d)], shard.value.size(d));
  }
  return whole;
}

// Writes this rank's boxes into the whole tensors, which begin as NaN; what was written
// before is compared.
void collect(const std::vector<std::shared_ptr<nn::ParameterGroup>>& groups,
             Result& result) {
  for (const auto& group : groups) {
    for (const auto& shard : group->shards()) {
      const auto place = [&](NamedTensors& into, const at::Tensor& value) {
        auto& whole = into.try_emplace(shard.name, at::full(shard.global_shape,
                                                            std::nan(""), at::kDouble))
                          .first->second;
        const auto own = box(whole, shard);
        if (own.isnan().all().item<bool>()) {
          own.copy_(value);
        } else if (!at::equal(own, value)) {
          result.replicas_equal = false;
        }
      };
      place(result.gradients, shard.gradient);
      place(result.weights, shard.value);
    }
  }
}

}  // namespace

Problem tensor_problem() {
  Problem problem;
  problem.args.dim = 16;
  problem.args.n_heads = 8;
  problem.args.n_kv_heads = 4;
  return problem;
}

Problem context_problem() {
  Problem problem = tensor_problem();
  problem.seq_len = problem.args.max_seq_len = 16;
  return problem;
}

Problem with_documents(Problem problem) {
  problem.args.document_masks = true;
  return problem;
}

Result run_step(const Problem& problem, const Layout& layout, const Changes& changes) {
  const LocalWorld world(layout.num_ranks(), std::chrono::seconds(60));
  const auto batch = global_batch(problem);
  const int64_t data_ranks = layout.num_data_ranks();
  const int64_t local_rows = problem.rows / (data_ranks * layout.num_microbatches);
  TORCH_CHECK(local_rows * data_ranks * layout.num_microbatches == problem.rows,
              problem.rows, " rows cannot be dealt out evenly");
  Result result;
  std::mutex mutex;
  world.run([&](int64_t rank) {
    const int64_t tensor = layout.tensor, context = layout.context;
    const int64_t stage_ranks = data_ranks * context * tensor;  // with the same stages
    const int64_t tokens_rank = rank % stage_ranks / tensor;  // that sees other tokens
    const int64_t data_rank = tokens_rank / context;
    const int64_t sharded = layout.shards * context;
    std::vector<int64_t> shard_ranks, replica_ranks, context_ranks, tensor_ranks,
        loss_ranks, pipeline_ranks;
    for (int64_t r = 0; r < layout.num_ranks(); ++r) {
      if (r % stage_ranks == rank % stage_ranks) pipeline_ranks.push_back(r);
      if (r / stage_ranks != rank / stage_ranks) continue;
      const int64_t other = r % stage_ranks / tensor;
      const bool same_tensor = r % tensor == rank % tensor;
      if (other == tokens_rank) tensor_ranks.push_back(r);
      if (!same_tensor) continue;
      loss_ranks.push_back(r);
      if (other / context == data_rank) context_ranks.push_back(r);
      if (other / sharded == tokens_rank / sharded) shard_ranks.push_back(r);
      if (other % sharded == tokens_rank % sharded) replica_ranks.push_back(r);
    }
    const auto wrapped = [&](const Group& group) {
      return changes.group && group.size() > 1 ? changes.group(group, rank) : group;
    };
    const auto axis = [&](const char* name, const std::vector<int64_t>& ranks) {
      return ranks.size() == 1 ? Group(name) : wrapped(world.group(rank, name, ranks));
    };
    const auto tensor_axis = axis("tp", tensor_ranks);
    const auto context_axis = axis("cp", context_ranks);
    auto attention =
        parallel::context::attention(context_axis, layout.method, layout.balance);
    const auto dealer = attention;
    if (changes.kernel) attention = changes.kernel(attention, context_axis);
    const auto model = build_model(problem, nn::TensorAxis(tensor_axis, layout.overlap),
                                   layout.loss_parallel, attention);
    auto checkpoint = layout.checkpoint;
    if (layout.recompute) {
      checkpoint.mode = parallel::activation_checkpoint::Policy::Mode::kFull;
    }
    checkpoint.batch = {
        .rows = local_rows, .length = problem.seq_len / context, .dtype = at::kDouble};
    const auto pipeline = pipeline_options(layout, axis("pp", pipeline_ranks));
    auto part = take_part(model, pipeline);
    if (changes.part) changes.part(part.model, tensor_axis);
    const auto applied = parallel::apply(
        std::move(part), {.shards = axis("fsdp", shard_ranks),
                          .replicas = axis("dp_replicate", replica_ranks),
                          .tensor = tensor_axis,
                          .parameters = options(),
                          .reshard_after_forward = layout.reshard,
                          .overlap_depth = layout.overlap_depth,
                          .recompute = checkpoint,
                          .host = layout.host,
                          .num_microbatches = layout.num_microbatches,
                          .early_optimizer_step = layout.early_optimizer_step,
                          .pipeline = pipeline});
    std::vector<optim::Target> targets;
    for (const auto& group : applied.groups) {
      group->initialize(kSeed);
      targets.push_back({group->master(), group->gradient()});
    }
    std::shared_ptr<optim::Optimizer> optimizer = std::make_shared<optim::Adam>(
        targets, optim::AdamConfig{.update = kAdam,
                                   .implementation = optim::Implementation::kFused,
                                   .state_dtype = at::kDouble});
    if (changes.optimizer) optimizer = changes.optimizer(optimizer);
    Step step({.model = applied.model,
               .groups = applied.groups,
               .recompute = applied.recompute,
               .training_program = applied.training_program,
               .stages = applied.stages,
               .evaluation_program = applied.evaluation_program,
               .evaluation_microbatches = applied.evaluation_microbatches,
               .optimizer = optimizer,
               .loss_axis = axis("loss", loss_ranks),
               .tensor_axis = applied.tensor,
               .pipeline_axis = applied.pipeline,
               .max_norm = kMaxNorm,
               .host = applied.host});
    StepResult last;
    for (int64_t i = 1; i <= problem.num_steps; ++i) {
      std::vector<Batch> microbatches;
      for (int64_t m = 0; m < layout.num_microbatches; ++m) {
        Batch local;
        const int64_t row = (m * data_ranks + data_rank) * local_rows;
        for (const auto& [name, value] : batch)
          local[name] = value.narrow(0, row, local_rows);
        auto dealt = dealer->deal(local);
        if (changes.deal) dealt = changes.deal(local, std::move(dealt), context_axis);
        microbatches.push_back(std::move(dealt));
      }
      last = step.run(std::move(microbatches), kLearningRate, i);
    }
    // One rank after another, so that the first writes and the others compare.
    for (int64_t turn = 0; turn < layout.num_ranks(); ++turn) {
      world.group(rank, "world").barrier().wait();
      if (turn != rank) continue;
      const std::lock_guard lock(mutex);
      collect(applied.groups, result);
      const auto loss = last.loss.item<double>();
      const auto grad_norm = last.grad_norm.item<double>();
      result.plans.emplace_back(applied.shape, applied.training_program);
      if (rank == 0) {
        result.shape = applied.shape;
        result.program = applied.training_program;
        result.loss = loss;
        result.grad_norm = grad_norm;
      }
      if (loss != result.loss || grad_norm != result.grad_norm) {
        result.replicas_equal = false;
      }
    }
  });
  return result;
}

Result run_reference(const Problem& problem) {
  const auto model = build_model(problem);
  auto batch = global_batch(problem);
  std::vector<nn::TensorList> parameters;
  std::vector<nn::TensorList> first_moments;
  std::vector<nn::TensorList> second_moments;
  for (const auto& spec : model.groups) {
    nn::WholeGroup group(spec, options(), Group("dp_replicate"));
    group.initialize(kSeed);
    nn::TensorList leaves;
    nn::TensorList zeros;
    for (const auto& shard : group.shards()) {
      leaves.push_back(shard.value.clone().set_requires_grad(true));
      zeros.push_back(at::zeros_like(shard.value));
    }
    parameters.push_back(leaves);
    first_moments.push_back(zeros);
    second_moments.push_back({});
    for (const auto& zero : zeros) second_moments.back().push_back(zero.clone());
  }
  Result result;
  for (int64_t step = 1; step <= problem.num_steps; ++step) {
    for (auto& leaves : parameters) {
      for (auto& leaf : leaves) leaf.mutable_grad() = at::Tensor();
    }
    const auto valid = batch["labels"].ne(ops::kIgnoreIndex).sum().to(at::kDouble);
    const auto loss =
        nn::forward(model, parameters, batch).at("loss").div(valid.clamp_min(1.0));
    torch::autograd::backward({loss}, {});
    result.loss = loss.item<double>();
    double squares = 0;
    for (const auto& leaves : parameters) {
      for (const auto& leaf : leaves)
        squares += leaf.grad().square().sum().item<double>();
    }
    result.grad_norm = std::sqrt(squares);
    const auto scalar = [](double value) {
      return at::scalar_tensor(value, at::kDouble);
    };
    const ops::AdamScalars scalars = {
        .learning_rate = scalar(kLearningRate),
        .step = scalar(static_cast<double>(step)),
        .clip = scalar(std::min(1.0, kMaxNorm / (result.grad_norm + 1e-6))),
        .finite = scalar(1)};
    const c10::AutoGradMode off(false);
    for (size_t g = 0; g < parameters.size(); ++g) {
      for (size_t slot = 0; slot < parameters[g].size(); ++slot) {
        const auto& name = model.groups[g].parameters[slot].name;
        const auto& leaf = parameters[g][slot];
        result.gradients[name] = leaf.grad().clone();
        ops::adamw_reference_(leaf, leaf.grad(), first_moments[g][slot],
                              second_moments[g][slot], kAdam, scalars);
        result.weights[name] = leaf.detach().clone();
      }
    }
  }
  return result;
}

}  // namespace torchtitan::train::testing
