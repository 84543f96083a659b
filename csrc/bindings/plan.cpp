#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "bindings/module.h"
#include "plan/memory_model.h"
#include "plan/parse_action.h"
#include "plan/passes/step_program.h"
#include "plan/simulate.h"
#include "plan/traffic.h"
#include "plan/verify.h"

namespace torchtitan::bindings {
namespace {

using namespace plan;

using WithoutGil = py::call_guard<py::gil_scoped_release>;

void bind_shapes(py::module_& module) {
  py::enum_<Reshard>(module, "Reshard",
                     "What becomes of gathered parameters between two uses.")
      .value("ALWAYS", Reshard::kAlways, "Freed after every forward and backward.")
      .value("DEFAULT", Reshard::kDefault,
             "Kept where the very next segment to run needs them.")
      .value("NEVER", Reshard::kNever, "Kept from forward to backward as well.");

  py::class_<GroupShape>(module, "GroupShape",
                         "Sizes of parameters that are gathered, reduced and stepped "
                         "together; bytes are per element.")
      .def(py::init([](std::string name, int64_t numel, int64_t shard_numel,
                       int64_t shards, int64_t replicas, int64_t master_bytes,
                       int64_t compute_bytes, int64_t reduce_bytes,
                       int64_t optimizer_bytes, Reshard reshard_after_forward,
                       bool trainable, std::string shard_axis,
                       std::string replica_axis) {
             return GroupShape{.name = std::move(name),
                               .numel = numel,
                               .shard_numel = shard_numel,
                               .shards = shards,
                               .replicas = replicas,
                               .master_bytes = master_bytes,
                               .compute_bytes = compute_bytes,
                               .reduce_bytes = reduce_bytes,
                               .optimizer_bytes = optimizer_bytes,
                               .reshard_after_forward = reshard_after_forward,
                               .trainable = trainable,
                               .shard_axis = std::move(shard_axis),
                               .replica_axis = std::move(replica_axis)};
           }),
           py::kw_only(), py::arg("name"), py::arg("numel"), py::arg("shard_numel"),
           py::arg("shards"), py::arg("replicas"), py::arg("master_bytes"),
           py::arg("compute_bytes"), py::arg("reduce_bytes"),
           py::arg("optimizer_bytes"), py::arg("reshard_after_forward"),
           py::arg("trainable"), py::arg("shard_axis") = "fsdp",
           py::arg("replica_axis") = "dp_replicate")
      .def_readonly("name", &GroupShape::name)
      .def_readonly("numel", &GroupShape::numel, "Elements without padding.")
      .def_readonly("shard_numel", &GroupShape::shard_numel,
                    "Elements stored by one rank, with padding.")
      .def_readonly("shards", &GroupShape::shards)
      .def_readonly("replicas", &GroupShape::replicas)
      .def_readonly("master_bytes", &GroupShape::master_bytes)
      .def_readonly("compute_bytes", &GroupShape::compute_bytes)
      .def_readonly("reduce_bytes", &GroupShape::reduce_bytes)
      .def_readonly("optimizer_bytes", &GroupShape::optimizer_bytes)
      .def_readonly("reshard_after_forward", &GroupShape::reshard_after_forward)
      .def_readonly("trainable", &GroupShape::trainable)
      .def_readonly("transport_numel", &GroupShape::transport_numel,
                    "Elements that the transport of a gather or reduction holds.")
      .def_readonly("shard_axis", &GroupShape::shard_axis)
      .def_readonly("replica_axis", &GroupShape::replica_axis);

  py::class_<SegmentShape>(module, "SegmentShape",
                           "Sizes of a link of the model's chain, per microbatch.")
      .def(
          py::init([](std::string name, std::vector<int64_t> groups,
                      int64_t forward_flops, int64_t recompute_flops,
                      int64_t backward_flops, int64_t input_bytes, int64_t output_bytes,
                      int64_t saved_bytes, int64_t forward_temporary_bytes,
                      int64_t backward_temporary_bytes, bool recompute,
                      bool saves_outputs) {
            return SegmentShape{.name = std::move(name),
                                .groups = std::move(groups),
                                .forward_flops = forward_flops,
                                .recompute_flops = recompute_flops,
                                .backward_flops = backward_flops,
                                .input_bytes = input_bytes,
                                .output_bytes = output_bytes,
                                .saved_bytes = saved_bytes,
                                .forward_temporary_bytes = forward_temporary_bytes,
                                .backward_temporary_bytes = backward_temporary_bytes,
                                .recompute = recompute,
                                .saves_outputs = saves_outputs};
          }),
          py::kw_only(), py::arg("name"), py::arg("groups"), py::arg("forward_flops"),
          py::arg("recompute_flops"), py::arg("backward_flops"), py::arg("input_bytes"),
          py::arg("output_bytes"), py::arg("saved_bytes"),
          py::arg("forward_temporary_bytes"), py::arg("backward_temporary_bytes"),
          py::arg("recompute"), py::arg("saves_outputs") = false)
      .def_readonly("name", &SegmentShape::name)
      .def_readonly("groups", &SegmentShape::groups, "Indices of the groups it uses.")
      .def_readonly("forward_flops", &SegmentShape::forward_flops)
      .def_readonly("recompute_flops", &SegmentShape::recompute_flops)
      .def_readonly("backward_flops", &SegmentShape::backward_flops)
      .def_readonly("input_bytes", &SegmentShape::input_bytes)
      .def_readonly("output_bytes", &SegmentShape::output_bytes)
      .def_readonly("saved_bytes", &SegmentShape::saved_bytes)
      .def_readonly("forward_temporary_bytes", &SegmentShape::forward_temporary_bytes)
      .def_readonly("backward_temporary_bytes", &SegmentShape::backward_temporary_bytes)
      .def_readonly("recompute", &SegmentShape::recompute)
      .def_readonly("saves_outputs", &SegmentShape::saves_outputs,
                    "Whether what backward needs includes the outputs.");

  py::class_<StepShape>(module, "StepShape", "What a planner knows of a rank's model.")
      .def(py::init([](std::vector<SegmentShape> segments,
                       std::vector<GroupShape> groups, int64_t num_microbatches,
                       int64_t constant_bytes) {
             return StepShape{.segments = std::move(segments),
                              .groups = std::move(groups),
                              .num_microbatches = num_microbatches,
                              .constant_bytes = constant_bytes};
           }),
           py::kw_only(), py::arg("segments"), py::arg("groups"),
           py::arg("num_microbatches"), py::arg("constant_bytes") = 0)
      .def_readonly("segments", &StepShape::segments)
      .def_readonly("groups", &StepShape::groups)
      .def_readonly("num_microbatches", &StepShape::num_microbatches)
      .def_readonly("constant_bytes", &StepShape::constant_bytes)
      .def("with_transport_buffers", &with_transport_buffers,
           "The shape where gathers and reductions of every sharded group receive all "
           "pieces in a buffer of their own, as over Gloo.")
      .def("with_optimizer_bytes", &with_optimizer_bytes, py::arg("optimizer_bytes"),
           "The shape with this many bytes of optimizer states per element.");
}

void bind_programs(py::module_& module) {
  py::class_<Action>(module, "Action",
                     "A small step of a training step; indices are -1 where unused.")
      .def(py::init(&parse_action), py::arg("text"),
           "The action that str() writes as this text; ValueError for another one.")
      .def_property_readonly(
          "kind", [](const Action& action) { return to_string(action.kind); },
          "\"Forward\", \"Unshard\", \"Wait\", ...")
      .def_property_readonly(
          "waits_for",
          [](const Action& action) -> std::optional<std::string> {
            if (action.kind != ActionKind::kWait) return std::nullopt;
            return to_string(action.waits_for);
          },
          "Of a Wait: the kind of its start.")
      .def_readonly("stage", &Action::stage)
      .def_readonly("segment", &Action::segment)
      .def_readonly("group", &Action::group)
      .def_readonly("microbatch", &Action::microbatch)
      .def_readonly("overlaps_next", &Action::overlaps_next,
                    "Whether this Forward and the next action run together.")
      .def("__str__", [](const Action& action) { return to_string(action); })
      .def("__eq__", [](const Action& a, const Action& b) { return a == b; });

  py::enum_<passes::OptimizerTiming>(module, "OptimizerTiming",
                                     "When groups are stepped.")
      .value("AT_END", passes::OptimizerTiming::kAtEnd, "Together, clipped.")
      .value("AT_LAST_GRADIENT", passes::OptimizerTiming::kAtLastGradient,
             "Each as soon as its gradient is final, unclipped.");
  module.def(
      "build_step_program",
      [](const StepShape& shape, int64_t prefetch_depth, int64_t reduce_depth,
         passes::OptimizerTiming optimizer) {
        return passes::build_step_program(shape, {.prefetch_depth = prefetch_depth,
                                                  .reduce_depth = reduce_depth,
                                                  .optimizer = optimizer});
      },
      "The actions of one training step of a rank. Depths are the compute actions that "
      "a gather starts ahead and that run during a reduction.",
      py::arg("shape"), py::kw_only(), py::arg("prefetch_depth"),
      py::arg("reduce_depth"), py::arg("optimizer"), WithoutGil());
  module.def(
      "build_forward_program",
      py::overload_cast<const StepShape&, int64_t>(&passes::build_forward_program),
      "The actions of a validation step.", py::arg("shape"), py::kw_only(),
      py::arg("prefetch_depth"), WithoutGil());

  py::enum_<ProgramKind>(module, "ProgramKind", "What a program must do.")
      .value("TRAINING", ProgramKind::kTraining)
      .value("FORWARD_ONLY", ProgramKind::kForwardOnly);
  module.def("verify", &verify,
             "Raise ValueError, naming the first wrong action, unless the program "
             "computes the step and leaves nothing behind.",
             py::arg("program"), py::arg("shape"), py::arg("kind"), WithoutGil());
  module.def(
      "verify_agreement",
      [](const std::vector<Program>& programs) { verify_agreement(programs); },
      "Raise ValueError unless all ranks start the same communications in one order.",
      py::arg("programs"), WithoutGil());
}

void bind_predictions(py::module_& module) {
  py::class_<Traffic>(module, "Traffic", "Calls of a collective and their bytes.")
      .def_readonly("calls", &Traffic::calls)
      .def_readonly("bytes", &Traffic::bytes, "Of the larger side of each call.");
  module.def(
      "traffic", &traffic,
      "Calls and bytes of a program by (mesh axis, verb), exactly. loss_ranks is "
      "the size of the axis \"loss\".",
      py::arg("program"), py::arg("shape"), py::kw_only(), py::arg("loss_ranks"),
      WithoutGil());

  py::class_<MemoryUse>(module, "MemoryUse", "Live tensor bytes by purpose.")
      .def_readonly("constant", &MemoryUse::constant)
      .def_readonly("parameters", &MemoryUse::parameters)
      .def_readonly("gradients", &MemoryUse::gradients)
      .def_readonly("optimizer", &MemoryUse::optimizer)
      .def_readonly("gathered", &MemoryUse::gathered)
      .def_readonly("whole_gradients", &MemoryUse::whole_gradients)
      .def_readonly("activations", &MemoryUse::activations)
      .def_readonly("temporaries", &MemoryUse::temporaries)
      .def("total", &MemoryUse::total);
  py::class_<MemoryEstimate>(module, "MemoryEstimate",
                             "Tensor bytes of a rank while it runs a program.")
      .def_readonly("before", &MemoryEstimate::before, "Between steps.")
      .def_readonly("after", &MemoryEstimate::after, "When the program has ended.")
      .def_readonly("peak", &MemoryEstimate::peak)
      .def_readonly("peak_action", &MemoryEstimate::peak_action,
                    "Index of the action of the peak; -1: before the first.")
      .def_readonly("totals", &MemoryEstimate::totals, "Highest total in each action.");
  module.def("estimate_memory", &estimate_memory,
             "Predict the tensor bytes of a rank that runs the program.",
             py::arg("program"), py::arg("shape"), WithoutGil());

  py::class_<Simulation>(module, "Simulation", "Predicted times of a program.")
      .def_readonly("seconds", &Simulation::seconds)
      .def_readonly("compute_seconds", &Simulation::compute_seconds)
      .def_readonly("exposed_seconds", &Simulation::exposed_seconds,
                    "Time that compute waited for communication.")
      .def_property_readonly(
          "spans",
          [](const Simulation& simulation) {
            std::vector<std::pair<double, double>> spans;
            for (const auto& [begin, end] : simulation.spans) {
              spans.emplace_back(begin, end);
            }
            return spans;
          },
          "Begin and end of each action in seconds; of a start: of its transfer.");
  module.def(
      "simulate",
      [](const std::vector<Program>& programs, const std::vector<StepShape>& shapes,
         double flops_per_second, double memory_bytes_per_second,
         const std::map<std::string, std::pair<double, double>>& links) {
        CostModel cost{flops_per_second, memory_bytes_per_second, {}};
        for (const auto& [axis, link] : links) {
          cost.links[axis] = {link.first, link.second};
        }
        return simulate(programs, shapes, cost);
      },
      "Predict the times of the programs of all ranks of a pipeline, or of the one rank "
      "without. links: (bytes per second, latency in seconds) of each mesh axis.",
      py::arg("programs"), py::arg("shapes"), py::kw_only(),
      py::arg("flops_per_second"), py::arg("memory_bytes_per_second"), py::arg("links"),
      WithoutGil());
}

}  // namespace

void bind_plan(py::module_ module) {
  bind_shapes(module);
  bind_programs(module);
  bind_predictions(module);
  bind_plan_pipeline(module);
}

}  // namespace torchtitan::bindings
