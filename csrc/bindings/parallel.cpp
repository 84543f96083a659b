#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "parallel/apply.h"

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

parallel::activation_checkpoint::Policy parse_recompute(const std::string& mode,
                                                        int64_t every) {
  using Policy = parallel::activation_checkpoint::Policy;
  if (mode == "none") return {Policy::Mode::kNone, every};
  if (mode == "full") return {Policy::Mode::kFull, every};
  TORCH_CHECK_VALUE(mode == "selective",
                    "recompute: expected none, full or selective, found '", mode, "'");
  return {Policy::Mode::kSelective, every};
}

}  // namespace

void bind_parallel(py::module_ module) {
  using parallel::Applied;
  py::class_<Applied>(module, "Applied", "A model's parameter groups and its programs.")
      .def_readonly("groups", &Applied::groups)
      .def_readonly("recompute", &Applied::recompute, "By segment.")
      .def_readonly("shape", &Applied::shape, "Sizes that the programs were made from.")
      .def_readonly("training_actions", &Applied::training_program,
                    "The actions of one step.")
      .def_property_readonly(
          "training_program",
          [](const Applied& applied) {
            return plan::to_string(applied.training_program);
          },
          "The program of one step, a line an action.");
  module.def(
      "apply",
      [](const nn::Model& model, const collectives::Group& shards,
         const collectives::Group& replicas, const collectives::Group& tensor,
         at::ScalarType master_dtype, at::ScalarType compute_dtype,
         at::ScalarType reduce_dtype, at::Device device,
         const std::string& reshard_after_forward, int64_t overlap_depth,
         const std::string& recompute, int64_t recompute_every,
         int64_t num_microbatches, bool early_optimizer_step) {
        return parallel::apply(
            model, {.shards = shards,
                    .replicas = replicas,
                    .tensor = tensor,
                    .parameters = {.master_dtype = master_dtype,
                                   .compute_dtype = compute_dtype,
                                   .reduce_dtype = reduce_dtype,
                                   .device = device},
                    .reshard_after_forward = parse_reshard(reshard_after_forward),
                    .overlap_depth = overlap_depth,
                    .recompute = parse_recompute(recompute, recompute_every),
                    .num_microbatches = num_microbatches,
                    .early_optimizer_step = early_optimizer_step});
      },
      py::arg("model"), py::kw_only(), py::arg("shards"), py::arg("replicas"),
      py::arg("tensor"), py::arg("master_dtype"), py::arg("compute_dtype"),
      py::arg("reduce_dtype"), py::arg("device"), py::arg("reshard_after_forward"),
      py::arg("overlap_depth"), py::arg("recompute"), py::arg("recompute_every"),
      py::arg("num_microbatches"), py::arg("early_optimizer_step"),
      py::call_guard<py::gil_scoped_release>(),
      "Lay out the model's parameters over the groups and make the step's programs.");
}

}  // namespace torchtitan::bindings
