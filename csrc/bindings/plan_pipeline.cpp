#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "bindings/module.h"
#include "plan/passes/transfers.h"
#include "plan/schedules/csv.h"
#include "plan/schedules/forward_only.h"
#include "plan/schedules/registry.h"

namespace torchtitan::bindings {
namespace {

using namespace plan;
using schedules::PipelineSize;
using schedules::Schedule;
using schedules::ScheduleFacts;

using WithoutGil = py::call_guard<py::gil_scoped_release>;

void bind_schedules(py::module_& module) {
  py::class_<Schedule>(module, "Schedule",
                       "What each rank of a pipeline does with its stages, in order.")
      .def_readonly("rank_of_stage", &Schedule::rank_of_stage)
      .def_readonly("num_microbatches", &Schedule::num_microbatches)
      .def_property_readonly("num_stages", &Schedule::num_stages)
      .def_property_readonly(
          "num_ranks", [](const Schedule& schedule) { return schedule.ranks.size(); })
      .def("to_csv", &schedules::to_csv, WithoutGil(),
           "The schedule in torch's CSV format, a row per rank.")
      .def("forward_only", &schedules::forward_only, WithoutGil(),
           "The schedule without its backwards: validation.")
      .def("__eq__", [](const Schedule& a, const Schedule& b) { return a == b; });

  py::class_<ScheduleFacts>(module, "ScheduleFacts",
                            "What one has to know of a schedule to choose it.")
      .def_property_readonly(
          "name", [](const ScheduleFacts& facts) { return std::string(facts.name); },
          "In torch's spelling.")
      .def_readonly("multi_stage", &ScheduleFacts::multi_stage,
                    "Whether it is made for several stages per rank.")
      .def_readonly("stages_per_rank", &ScheduleFacts::stages_per_rank,
                    "The only number it takes; 0: any from 1 on.")
      .def_readonly("v_shaped", &ScheduleFacts::v_shaped,
                    "Whether rank r of p has stages r and 2 p - 1 - r, else r + i p.")
      .def_readonly("splits_backward", &ScheduleFacts::splits_backward)
      .def_readonly("overlaps", &ScheduleFacts::overlaps,
                    "Whether it runs forwards together with backwards.")
      .def_readonly("bounded_memory", &ScheduleFacts::bounded_memory,
                    "Whether more microbatches do not mean more live activations.")
      .def(
          "live_bound",
          [](const ScheduleFacts& facts, int64_t num_ranks, int64_t stages_per_rank,
             int64_t num_microbatches, int64_t rank) {
            const PipelineSize size{num_ranks, stages_per_rank, num_microbatches};
            schedules::check_size(facts, size);
            return facts.live_bound(size, rank);
          },
          "Most microbatches times stages of a rank that await their backward.",
          py::kw_only(), py::arg("num_ranks"), py::arg("stages_per_rank"),
          py::arg("num_microbatches"), py::arg("rank"))
      .def(
          "bubble",
          [](const ScheduleFacts& facts, int64_t num_ranks, int64_t stages_per_rank,
             int64_t num_microbatches) {
            const PipelineSize size{num_ranks, stages_per_rank, num_microbatches};
            schedules::check_size(facts, size);
            return facts.bubble(size);
          },
          "The published idle share of a step, if there is one for this size.",
          py::kw_only(), py::arg("num_ranks"), py::arg("stages_per_rank"),
          py::arg("num_microbatches"));

  module.def(
      "all_schedules",
      [] {
        const auto all = schedules::all_schedules();
        return std::vector<ScheduleFacts>(all.begin(), all.end());
      },
      "Every schedule that make_schedule knows.");
  module.def("find_schedule", &schedules::find_schedule,
             "The schedule of a name in any case; ValueError names those that exist.",
             py::arg("name"), py::return_value_policy::copy);
  module.def("make_schedule", &schedules::make_schedule,
             "The order of a named schedule.", py::arg("name"), py::kw_only(),
             py::arg("num_ranks"), py::arg("stages_per_rank"),
             py::arg("num_microbatches"), WithoutGil());
  module.def("parse_schedule_csv", &schedules::parse_csv,
             "The schedule of a CSV text in torch's format; ValueError names row and "
             "column.",
             py::arg("text"), WithoutGil());
}

}  // namespace

void bind_plan_pipeline(py::module_& module) {
  bind_schedules(module);
  module.def("add_transfers", &passes::add_transfers,
             "The programs of all ranks of a pipeline, with the messages between "
             "stages. Receives start `depth` works ahead of the one that needs them.",
             py::arg("schedule"), py::kw_only(), py::arg("depth") = 1, WithoutGil());
}

}  // namespace torchtitan::bindings
