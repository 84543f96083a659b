#include <torch/csrc/utils/pybind.h>

#include <ATen/ops/empty.h>
#include <pybind11/stl.h>

#include "nn/initialize.h"
#include "nn/measure.h"
#include "nn/model.h"
#include "nn/parameter_group.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_nn(py::module_ module) {
  py::class_<nn::ParameterSpec>(module, "ParameterSpec",
                                "Name, shape and initial distribution of a parameter.")
      .def_readonly("name", &nn::ParameterSpec::name)
      .def_readonly("shape", &nn::ParameterSpec::shape);
  py::class_<nn::ParameterGroupSpec>(
      module, "ParameterGroupSpec",
      "Parameters that are gathered and reduced together.")
      .def_readonly("name", &nn::ParameterGroupSpec::name)
      .def_readonly("parameters", &nn::ParameterGroupSpec::parameters);
  py::class_<nn::Model>(module, "Model",
                        "A chain of segments and the parameter groups that they use.")
      .def_readonly("groups", &nn::Model::groups)
      .def_property_readonly(
          "segments",
          [](const nn::Model& model) {
            std::vector<std::string> names;
            for (const auto& segment : model.segments) names.push_back(segment->name());
            return names;
          },
          "Names of the segments in order.")
      .def("forward", &nn::forward, py::arg("parameters"), py::arg("values"),
           py::call_guard<py::gil_scoped_release>(),
           "Run all segments as one differentiable function. `parameters` are lists of "
           "tensors by group; returns `values` and every segment's outputs by name.");

  py::class_<nn::ParameterShard>(module, "ParameterShard",
                                 "This rank's rows of one parameter.")
      .def_readonly("name", &nn::ParameterShard::name)
      .def_readonly("global_shape", &nn::ParameterShard::global_shape)
      .def_readonly("first_row", &nn::ParameterShard::first_row)
      .def_readonly("value", &nn::ParameterShard::value)
      .def_readonly("gradient", &nn::ParameterShard::gradient)
      .def_readonly("is_writer", &nn::ParameterShard::is_writer);
  py::class_<nn::ParameterGroup, std::shared_ptr<nn::ParameterGroup>>(
      module, "ParameterGroup", "Parameters in one flat local buffer.")
      .def_property_readonly("name",
                             [](const nn::ParameterGroup& g) { return g.spec().name; })
      .def_property_readonly("shards", &nn::ParameterGroup::shards)
      .def_property_readonly("master", &nn::ParameterGroup::master)
      .def_property_readonly("gradient", &nn::ParameterGroup::gradient)
      .def("shard_views", &nn::ParameterGroup::shard_views, py::arg("flat"),
           "Views of a flat buffer laid out like `master`, in the shapes of `shards`.")
      .def("initialize", &nn::ParameterGroup::initialize, py::arg("seed"),
           py::call_guard<py::gil_scoped_release>(),
           "Fill `master` with the initial numbers of (seed, name, global element).");
  module.def(
      "measure",
      [](const nn::Model& model, const std::map<std::string, at::Tensor>& batch,
         const plan::StepShape& shape, at::ScalarType master_dtype,
         at::ScalarType compute_dtype, at::ScalarType reduce_dtype) {
        return nn::measure(model,
                           {.master_dtype = master_dtype,
                            .compute_dtype = compute_dtype,
                            .reduce_dtype = reduce_dtype,
                            .device = at::Device(at::kMeta)},
                           batch, shape);
      },
      py::arg("model"), py::arg("batch"), py::arg("shape"), py::kw_only(),
      py::arg("master_dtype"), py::arg("compute_dtype"), py::arg("reduce_dtype"),
      py::call_guard<py::gil_scoped_release>(),
      "The step's shape with the bytes of every segment, found by running the model on "
      "meta tensors. `batch` is one microbatch.");
  module.def(
      "initial_value",
      [](const nn::ParameterSpec& parameter, uint64_t seed) {
        auto value = at::empty(parameter.shape, at::kFloat);
        nn::fill_initial(value, parameter, /*first_row=*/0, seed);
        return value;
      },
      py::arg("parameter"), py::arg("seed"), py::call_guard<py::gil_scoped_release>(),
      "The whole parameter's initial numbers, float32 on the CPU.");
}

}  // namespace torchtitan::bindings
