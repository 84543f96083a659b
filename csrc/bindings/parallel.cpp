#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "nn/exchanges.h"
#include "nn/measure.h"
#include "parallel/apply.h"
#include "parallel/context/attention.h"
#include "parallel/tensor/split.h"

#include "bindings/module.h"

namespace torchtitan::bindings {
namespace {

plan::Reshard parse_reshard(const std::string& text) {
  if (text == "always") return plan::Reshard::kAlways;
  if (text == "never") return plan::Reshard::kNever;
  TORCH_CHECK_VALUE(text == "default",
                    "reshard_after_forward: expected default, always or never, found '",
                    text, "'");
  return plan::Reshard::kDefault;
}

parallel::activation_checkpoint::Policy::Mode parse_recompute(const std::string& mode) {
  using Mode = parallel::activation_checkpoint::Policy::Mode;
  if (mode == "none") return Mode::kNone;
  if (mode == "full") return Mode::kFull;
  if (mode == "selective") return Mode::kSelective;
  if (mode == "per_operation") return Mode::kPerOperation;
  TORCH_CHECK_VALUE(mode == "memory_budget",
                    "mode: expected none, full, selective, per_operation or "
                    "memory_budget, found '",
                    mode, "'");
  return Mode::kMemoryBudget;
}

}  // namespace

void bind_parallel(py::module_ module) {
  using parallel::Applied;
  using parallel::activation_checkpoint::Policy;
  py::class_<Policy>(module, "Recompute", "Activation checkpointing.")
      .def(py::init([](const std::string& mode, int64_t every,
                       std::vector<std::string> recomputed_modules, double budget,
                       int64_t rows, int64_t length, at::ScalarType dtype) {
             return Policy{.mode = parse_recompute(mode),
                           .every = every,
                           .recomputed_modules = std::move(recomputed_modules),
                           .budget = budget,
                           .batch = {.rows = rows, .length = length, .dtype = dtype}};
           }),
           py::kw_only(), py::arg("mode"), py::arg("every") = 1,
           py::arg("recomputed_modules") = std::vector<std::string>(),
           py::arg("budget") = 1.0, py::arg("rows") = 1, py::arg("length") = 1,
           py::arg("dtype") = at::kFloat,
           "`every` is of mode selective, `recomputed_modules` of per_operation, "
           "`budget` of memory_budget. A microbatch has `rows` of `length` tokens and "
           "activations of `dtype`.");
  py::class_<Applied>(module, "Applied", "A model's parameter groups and its programs.")
      .def_readonly("groups", &Applied::groups)
      .def_readonly("segments", &Applied::segments,
                    "Of the whole model, by segment of this rank's part.")
      .def_readonly("recompute", &Applied::recompute, "By segment.")
      .def_property_readonly(
          "host",
          [](const Applied& applied) {
            return applied.host ? std::optional(applied.host) : std::nullopt;
          },
          "Where what is offloaded goes; None where nothing is.")
      .def_property_readonly(
          "memory_budget_curve",
          [](const Applied& applied) {
            std::vector<std::pair<int64_t, int64_t>> points;
            for (const auto& cost : applied.checkpointing.curve) {
              points.emplace_back(cost.bytes, cost.flops);
            }
            return points;
          },
          "Bytes kept and flops of computing the rest again, over a microbatch: every "
          "choice that no other one beats in both.")
      .def_property_readonly(
          "memory_budget_choice",
          [](const Applied& applied) {
            const auto& cost = applied.checkpointing.chosen;
            return std::pair<int64_t, int64_t>(cost.bytes, cost.flops);
          },
          "The point of it that was chosen.")
      .def_readonly("shape", &Applied::shape, "Sizes that the programs were made from.")
      .def_readonly("training_actions", &Applied::training_program,
                    "The actions of one step.")
      .def_property_readonly(
          "training_program",
          [](const Applied& applied) {
            return plan::to_string(applied.training_program);
          },
          "The program of one step, a line an action.");
  py::class_<parallel::pipeline::Part>(module, "Part",
                                       "The part of a model that one rank has.")
      .def_readonly("segments", &parallel::pipeline::Part::segments,
                    "Of the whole model, by segment of the part.");
  module.def("whole", &parallel::whole, py::arg("model"),
             "A model that lies whole on every rank of the pipeline axis.");
  module.def(
      "divide",
      [](nn::Model model, const std::map<std::string, int64_t>& dims,
         const collectives::Group& axis) {
        parallel::tensor::split(model.groups, dims, axis);
        return model;
      },
      py::arg("model"), py::kw_only(), py::arg("dims"), py::arg("axis"),
      "The model with this rank's pieces of the parameters in `dims`, by full name: that "
      "dim is divided among the ranks of `axis` like torch.chunk. All ranks hold the "
      "others whole, of which the first one counts.");
  module.def("take_part", &parallel::pipeline::take_part, py::arg("model"),
             py::kw_only(), py::arg("segments_per_stage"), py::arg("rank_of_stage"),
             py::arg("rank"),
             "The segments of the stages of a rank, and the parameters that they use.");
  module.def("as_part", &parallel::pipeline::as_part, py::arg("model"), py::kw_only(),
             py::arg("segments_per_stage"), py::arg("rank_of_stage"), py::arg("rank"),
             "The same for a model with a forward of its own that was made for the "
             "stages of the rank; `segments_per_stage` are theirs.");
  py::class_<parallel::PipelineOptions>(module, "PipelineOptions",
                                        "Schedules of a pipeline.")
      .def(py::init([](const collectives::Group& group,
                       plan::schedules::Schedule training, int64_t rounds,
                       plan::schedules::Schedule evaluation) {
             return parallel::PipelineOptions{.group = group,
                                              .training = std::move(training),
                                              .rounds = rounds,
                                              .evaluation = std::move(evaluation)};
           }),
           py::kw_only(), py::arg("group"), py::arg("training"), py::arg("rounds"),
           py::arg("evaluation"));
  module.def(
      "apply",
      [](const parallel::pipeline::Part& part, const collectives::Group& shards,
         const collectives::Group& replicas, const collectives::Group& tensor,
         at::ScalarType master_dtype, at::ScalarType compute_dtype,
         at::ScalarType reduce_dtype, at::Device device,
         const std::string& reshard_after_forward, int64_t overlap_depth,
         const Policy& recompute, int64_t num_microbatches, bool early_optimizer_step,
         std::optional<parallel::PipelineOptions> pipeline,
         std::optional<std::shared_ptr<nn::HostStore>> host) {
        return parallel::apply(
            part, {.shards = shards,
                   .replicas = replicas,
                   .tensor = tensor,
                   .parameters = {.master_dtype = master_dtype,
                                  .compute_dtype = compute_dtype,
                                  .reduce_dtype = reduce_dtype,
                                  .device = device},
                   .reshard_after_forward = parse_reshard(reshard_after_forward),
                   .overlap_depth = overlap_depth,
                   .recompute = recompute,
                   .host = host.value_or(nullptr),
                   .num_microbatches = num_microbatches,
                   .early_optimizer_step = early_optimizer_step,
                   .pipeline = std::move(pipeline)});
      },
      py::arg("part"), py::kw_only(), py::arg("shards"), py::arg("replicas"),
      py::arg("tensor"), py::arg("master_dtype"), py::arg("compute_dtype"),
      py::arg("reduce_dtype"), py::arg("device"), py::arg("reshard_after_forward"),
      py::arg("overlap_depth"), py::arg("recompute"), py::arg("num_microbatches"),
      py::arg("early_optimizer_step"), py::arg("pipeline") = std::nullopt,
      py::arg("host") = std::nullopt, py::call_guard<py::gil_scoped_release>(),
      "Lay out the model's parameters over the groups and make the step's programs. "
      "`host` takes what blocks keep for a backward that is not soon.");
  module.def(
      "context_attention",
      [](const collectives::Group& ranks, const std::string& rotate_method,
         const std::string& load_balancer) {
        namespace context = parallel::context;
        return context::attention(ranks, context::parse_method(rotate_method),
                                  context::parse_balance(load_balancer));
      },
      py::arg("ranks"), py::kw_only(), py::arg("rotate_method"),
      py::arg("load_balancer"),
      "Attention of ranks that share sequences. `rotate_method` is 'allgather', "
      "'alltoall' (around a ring) or 'ulysses' (heads for tokens), `load_balancer` "
      "'headtail', 'none' or 'ptrr'.");
  module.def(
      "measure",
      [](const nn::Model& whole, const Applied& applied,
         const std::map<std::string, at::Tensor>& batch, const plan::StepShape& shape,
         at::ScalarType master_dtype, at::ScalarType compute_dtype,
         at::ScalarType reduce_dtype) {
        return nn::measure(whole, applied.model, applied.stages,
                           {.master_dtype = master_dtype,
                            .compute_dtype = compute_dtype,
                            .reduce_dtype = reduce_dtype,
                            .device = at::Device(at::kMeta)},
                           batch, shape);
      },
      py::arg("whole"), py::arg("applied"), py::arg("batch"), py::arg("shape"),
      py::kw_only(), py::arg("master_dtype"), py::arg("compute_dtype"),
      py::arg("reduce_dtype"), py::call_guard<py::gil_scoped_release>(),
      "The shape of the rank's step with the bytes of every segment, found by running "
      "its part of the model on meta tensors. `batch` is one microbatch.");
  module.def(
      "with_exchanges",
      [](const Applied& applied, const plan::StepShape& shape,
         const std::map<std::string, std::vector<int64_t>>& hidden,
         const std::vector<int64_t>& tokens, at::ScalarType compute_dtype,
         at::ScalarType reduce_dtype, at::Device device) {
        return nn::with_exchanges(applied.model, applied.stages,
                                  {.master_dtype = compute_dtype,
                                   .compute_dtype = compute_dtype,
                                   .reduce_dtype = reduce_dtype,
                                   .device = device},
                                  hidden, tokens, shape);
      },
      py::arg("applied"), py::arg("shape"), py::kw_only(), py::arg("hidden"),
      py::arg("tokens"), py::arg("compute_dtype"), py::arg("reduce_dtype"),
      py::arg("device"),
      "The shape of the rank's step with what its segments exchange in a microbatch and "
      "what its stages send, from the sizes of what segments hand on, `hidden`, and of "
      "its tokens. Nothing is computed.");
}

}  // namespace torchtitan::bindings
