#include <torch/csrc/utils/pybind.h>

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "optim/adam.h"
#include "optim/called_optimizer.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_optim(py::module_ module) {
  using optim::Adam;
  using optim::CalledOptimizer;
  using optim::Optimizer;
  py::class_<Optimizer, std::shared_ptr<Optimizer>>(module, "Optimizer",
                                                    "What the step's program calls.");
  py::class_<CalledOptimizer, Optimizer, std::shared_ptr<CalledOptimizer>>(
      module, "CalledOptimizer", "An optimizer of Python, called once a step.")
      .def(py::init<std::vector<at::Tensor>, std::function<void()>>(),
           py::arg("gradients"), py::arg("update"),
           "`gradients` are clipped in place, then `update` is called; neither happens "
           "where the gradient is not finite.");
  py::class_<Adam, Optimizer, std::shared_ptr<Adam>>(
      module, "Adam", "Adam or AdamW over the flat buffers of parameter groups.")
      .def(py::init([](const std::vector<std::pair<at::Tensor, at::Tensor>>& targets,
                       double beta1, double beta2, double eps, double weight_decay,
                       bool decoupled, bool fused, at::ScalarType state_dtype) {
             std::vector<optim::Target> pairs;
             for (const auto& [parameter, gradient] : targets) {
               pairs.push_back({parameter, gradient});
             }
             return std::make_shared<Adam>(
                 std::move(pairs),
                 optim::AdamConfig{
                     .update = {.beta1 = beta1,
                                .beta2 = beta2,
                                .eps = eps,
                                .weight_decay = weight_decay,
                                .decoupled = decoupled},
                     .implementation = fused ? optim::Implementation::kFused
                                             : optim::Implementation::kReference,
                     .state_dtype = state_dtype});
           }),
           py::arg("targets"), py::kw_only(), py::arg("beta1"), py::arg("beta2"),
           py::arg("eps"), py::arg("weight_decay"), py::arg("decoupled"),
           py::arg("fused"), py::arg("state_dtype"),
           "`targets` are (parameter, gradient) pairs of flat tensors.")
      .def("__len__", &Adam::size)
      .def("exp_avg", &Adam::exp_avg, py::arg("index"))
      .def("exp_avg_sq", &Adam::exp_avg_sq, py::arg("index"));
}

}  // namespace torchtitan::bindings
