#include <torch/csrc/utils/pybind.h>

#include <chrono>

#include "models/sleeping/model.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_models_sleeping(py::module_ module) {
  using models::sleeping::Diary;
  using Seconds = std::chrono::duration<double>;
  py::class_<Diary, std::shared_ptr<Diary>>(
      module, "Diary", "What the blocks of one rank did since the last reset.")
      .def(py::init<>())
      .def("reset", &Diary::reset, "Stands before a step.")
      .def_property_readonly("num_works", &Diary::num_works)
      .def_property_readonly(
          "begin",
          [](const Diary& diary) {
            return Seconds(diary.begin().time_since_epoch()).count();
          },
          "Of the first work, as time.monotonic() counts.")
      .def_property_readonly(
          "end",
          [](const Diary& diary) {
            return Seconds(diary.end().time_since_epoch()).count();
          },
          "Of the last one.")
      .def_property_readonly(
          "busy", [](const Diary& diary) { return Seconds(diary.busy()).count(); },
          "Seconds of all works together.");
  module.def(
      "build",
      [](int64_t num_blocks, double seconds, const std::shared_ptr<Diary>& diary) {
        return models::sleeping::build(
            num_blocks,
            std::chrono::duration_cast<Diary::Clock::duration>(Seconds(seconds)),
            diary);
      },
      py::kw_only(), py::arg("num_blocks"), py::arg("seconds"), py::arg("diary"),
      "A model whose blocks sleep in forward and in both halves of backward, for "
      "measuring schedules.");
}

}  // namespace torchtitan::bindings
