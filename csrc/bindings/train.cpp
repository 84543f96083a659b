#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "parallel/apply.h"
#include "train/step.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_train(py::module_ module) {
  using train::Evaluation;
  using train::Step;
  using train::StepResult;
  py::class_<StepResult>(module, "StepResult",
                         "0-dim tensors; reading one waits for the device.")
      .def_readonly("loss", &StepResult::loss)
      .def_readonly("grad_norm", &StepResult::grad_norm)
      .def_readonly("num_tokens", &StepResult::num_tokens)
      .def_readonly("local_loss", &StepResult::local_loss)
      .def_readonly("local_tokens", &StepResult::local_tokens)
      .def_readonly("finite", &StepResult::finite);
  py::class_<Evaluation>(module, "Evaluation", "Loss of one batch, without gradients.")
      .def_readonly("loss_sum", &Evaluation::loss_sum)
      .def_readonly("num_tokens", &Evaluation::num_tokens);
  py::class_<Step>(module, "Step", "The hot training step.")
      .def(py::init([](const parallel::Applied& applied,
                       std::shared_ptr<optim::Optimizer> optimizer,
                       const collectives::Group& loss_axis, double max_norm) {
             return std::make_unique<Step>(train::StepParts{
                 .model = applied.model,
                 .groups = applied.groups,
                 .recompute = applied.recompute,
                 .training_program = applied.training_program,
                 .stages = applied.stages,
                 .evaluation_program = applied.evaluation_program,
                 .evaluation_microbatches = applied.evaluation_microbatches,
                 .optimizer = std::move(optimizer),
                 .loss_axis = loss_axis,
                 .tensor_axis = applied.tensor,
                 .pipeline_axis = applied.pipeline,
                 .max_norm = max_norm});
           }),
           py::arg("applied"), py::arg("optimizer"), py::kw_only(),
           py::arg("loss_axis"), py::arg("max_norm"))
      .def(
          "run", &Step::run, py::arg("microbatches"), py::kw_only(),
          py::arg("learning_rate"), py::arg("step"),
          py::call_guard<py::gil_scoped_release>(),
          "One optimizer step over this rank's microbatches, dicts of named tensors with "
          "'input' and 'labels'. `step` counts from 1.")
      .def("evaluate", &Step::evaluate, py::arg("batch"),
           py::call_guard<py::gil_scoped_release>(),
           "Loss of one batch without gradients; all ranks call it together.")
      .def("record_times", &Step::record_times, py::arg("on"),
           "Whether run() records when its actions begin and end.")
      .def_property_readonly(
          "times",
          [](const Step& step) {
            std::vector<std::pair<double, double>> times;
            for (const auto& [begin, end] : step.times()) {
              times.emplace_back(begin, end);
            }
            return times;
          },
          "Begin and end of each training action of the last recorded run, by the "
          "host's clock (seconds of time.monotonic()); of a start: until its Wait has "
          "ended. RuntimeError if there was none.");
}

}  // namespace torchtitan::bindings
