#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/module.h"
#include "plan/passes/transfers.h"
#include "plan/schedules/csv.h"
#include "plan/schedules/forward_only.h"
#include "plan/schedules/registry.h"
#include "plan/simulate_pipeline.h"
#include "plan/timeline.h"
#include "plan/verify_pipeline.h"

namespace torchtitan::bindings {
namespace {

using namespace plan;
using schedules::PipelineSize;
using schedules::Schedule;
using schedules::ScheduleFacts;

using WithoutGil = py::call_guard<py::gil_scoped_release>;

using Times = std::vector<std::vector<std::pair<double, double>>>;

std::vector<std::vector<Span>> to_spans(const Times& times) {
  std::vector<std::vector<Span>> spans;
  for (const auto& rank : times) {
    auto& of_rank = spans.emplace_back();
    for (const auto& [begin, end] : rank) of_rank.push_back({begin, end});
  }
  return spans;
}

bool overlaps(const Schedule& schedule) {
  return std::any_of(
      schedule.ranks.begin(), schedule.ranks.end(), [](const auto& actions) {
        return std::any_of(actions.begin(), actions.end(),
                           [](const auto& action) { return action.overlaps_next; });
      });
}

void bind_schedules(py::module_& module) {
  py::class_<Schedule>(module, "Schedule",
                       "What each rank of a pipeline does with its stages, in order.")
      .def_readonly("rank_of_stage", &Schedule::rank_of_stage)
      .def_readonly("num_microbatches", &Schedule::num_microbatches)
      .def_property_readonly("num_stages", &Schedule::num_stages)
      .def_property_readonly(
          "num_ranks", [](const Schedule& schedule) { return schedule.ranks.size(); })
      .def_property_readonly("overlaps", &overlaps,
                             "Whether it runs forwards together with backwards.")
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
          "The published idle share of a step where forward and both halves of "
          "backward take equally long; None for too few microbatches.",
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

void bind_pipeline_programs(py::module_& module) {
  module.def("add_transfers", &passes::add_transfers,
             "The programs of all ranks of a pipeline, with the messages between "
             "stages. Receives start `depth` works ahead of the one that needs them.",
             py::arg("schedule"), py::kw_only(), py::arg("depth") = 1, WithoutGil());
  module.def(
      "verify_pipeline",
      [](const std::vector<Program>& programs, std::vector<int64_t> rank_of_stage,
         int64_t num_microbatches, ProgramKind kind, std::vector<int64_t> live_bounds) {
        verify_pipeline(
            programs,
            {std::move(rank_of_stage), num_microbatches, std::move(live_bounds)}, kind);
      },
      "Raise ValueError, naming rank and action, unless the programs of all ranks do "
      "the work of the stages together, without deadlock. live_bounds: most live "
      "activations by rank; empty: no bound.",
      py::arg("programs"), py::kw_only(), py::arg("rank_of_stage"),
      py::arg("num_microbatches"), py::arg("kind"),
      py::arg("live_bounds") = std::vector<int64_t>{}, WithoutGil());

  py::class_<StageCost>(module, "StageCost", "Of a stage on one microbatch.")
      .def(py::init([](double forward_seconds, double backward_seconds,
                       double backward_input_seconds, double backward_weight_seconds,
                       double output_bytes) {
             return StageCost{forward_seconds, backward_seconds, backward_input_seconds,
                              backward_weight_seconds, output_bytes};
           }),
           py::kw_only(), py::arg("forward_seconds"), py::arg("backward_seconds"),
           py::arg("backward_input_seconds"), py::arg("backward_weight_seconds"),
           py::arg("output_bytes") = 0.0);
  py::class_<RankUse>(module, "RankUse", "A rank's share in a simulated pipeline.")
      .def_readonly("compute_seconds", &RankUse::compute_seconds)
      .def_readonly("first_begin", &RankUse::first_begin, "Of its first work.")
      .def_readonly("last_end", &RankUse::last_end, "Of its last work.")
      .def_readonly("peak_live", &RankUse::peak_live, "Most live activations.")
      .def_property_readonly("idle_share", &RankUse::idle_share,
                             "Of the time between its first and its last work.");
  py::class_<PipelineSimulation>(module, "PipelineSimulation",
                                 "Predicted times of a pipeline's programs.")
      .def_readonly("seconds", &PipelineSimulation::seconds)
      .def_readonly("ranks", &PipelineSimulation::ranks)
      .def_property_readonly(
          "bubble",
          [](const PipelineSimulation& simulation) { return simulation.bubble(); },
          "Idle share of the time of all ranks.")
      .def_property_readonly(
          "spans",
          [](const PipelineSimulation& simulation) {
            std::vector<std::vector<std::pair<double, double>>> spans;
            for (const auto& of_rank : simulation.spans) {
              auto& rank = spans.emplace_back();
              for (const auto& [begin, end] : of_rank) rank.emplace_back(begin, end);
            }
            return spans;
          },
          "Begin and end of each rank's actions in seconds; of a start: of its "
          "message.");
  module.def(
      "simulate_pipeline",
      [](const std::vector<Program>& programs, const std::vector<StageCost>& stages,
         std::optional<std::pair<double, double>> link) {
        std::optional<Link> rates;
        if (link) rates = Link{link->first, link->second};
        return simulate_pipeline(programs, stages, rates);
      },
      "Predict the time of the programs of all ranks. link: bytes per second and "
      "latency in seconds of a message; None: messages take no time.",
      py::arg("programs"), py::arg("stages"), py::kw_only(),
      py::arg("link") = py::none(), WithoutGil());
  module.def(
      "draw_timeline",
      [](const std::vector<Program>& programs, const Times& spans,
         const std::string& title) {
        return draw_timeline(programs, to_spans(spans), title);
      },
      "An SVG picture of the programs of all ranks. spans: begin and end of each "
      "rank's actions in seconds, predicted or measured.",
      py::arg("programs"), py::arg("spans"), py::kw_only(), py::arg("title"),
      WithoutGil());
  module.def(
      "idle_share",
      [](const std::vector<Program>& programs, const Times& spans) {
        return idle_share(programs, to_spans(spans));
      },
      "The share of the time of all ranks, from 0 to the last end, in which they run no "
      "compute action and no optimizer.",
      py::arg("programs"), py::arg("spans"), WithoutGil());
  module.def("with_stages", &with_stages,
             "A rank's program with the pipeline stage of each compute action.",
             py::arg("program"), py::arg("shape"), WithoutGil());
}

}  // namespace

void bind_plan_pipeline(py::module_& module) {
  bind_schedules(module);
  bind_pipeline_programs(module);
}

}  // namespace torchtitan::bindings
