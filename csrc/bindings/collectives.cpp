#include <torch/csrc/Exceptions.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "bindings/module.h"
#include "collectives/backend.h"
#include "collectives/c10d_group.h"
#include "collectives/fake_group.h"
#include "collectives/flight_recorder.h"
#include "collectives/heartbeat.h"
#include "collectives/local_world.h"
#include "collectives/recording.h"

namespace torchtitan::bindings {

namespace {

using namespace torchtitan::collectives;
using at::Tensor;
using Released = py::call_guard<py::gil_scoped_release>;

// A thread that waits for others while it holds the GIL may wait for a thread that
// needs it. Groups made from Python refuse that, whoever calls them.
void check_gil_released(const char* where) {
  TORCH_CHECK(!PyGILState_Check(), where, ": the GIL is held inside a collective");
}

class GilCheckedWork : public Work {
 public:
  explicit GilCheckedWork(std::shared_ptr<Work> work) : work_(std::move(work)) {}
  bool completed() override { return work_->completed(); }
  void wait() override {
    check_gil_released("wait");
    work_->wait();
  }

 private:
  std::shared_ptr<Work> work_;
};

class GilCheckedBackend : public Backend {
 public:
  explicit GilCheckedBackend(std::shared_ptr<Backend> inner)
      : inner_(std::move(inner)) {}
  int64_t rank() const override { return inner_->rank(); }
  int64_t size() const override { return inner_->size(); }
  std::shared_ptr<Work> start(Operation operation) override {
    check_gil_released("start");
    auto work = inner_->start(std::move(operation));
    return work ? std::make_shared<GilCheckedWork>(std::move(work)) : nullptr;
  }

 private:
  std::shared_ptr<Backend> inner_;
};

Group gil_checked(const Group& group) {
  if (group.size() == 1) return group;
  return Group(group.name(), std::make_shared<GilCheckedBackend>(group.backend()));
}

std::chrono::milliseconds to_milliseconds(double seconds) {
  return std::chrono::milliseconds(std::llround(seconds * 1000));
}

void bind_group(py::module_& module) {
  py::enum_<collectives::ReduceOp>(module, "ReduceOp",
                                   "How all_reduce combines values.")
      .value("SUM", collectives::ReduceOp::kSum)
      .value("MAX", collectives::ReduceOp::kMax)
      .value("MIN", collectives::ReduceOp::kMin);

  py::class_<Handle>(module, "Handle", "An operation under way.")
      .def("wait", &Handle::wait, Released(),
           "Return once the outputs may be read and the inputs written.")
      .def("completed", &Handle::completed, Released(),
           "Whether wait() would return without waiting for other ranks.");

  py::class_<Group>(module, "Group",
                    "Ranks that exchange tensors; all start the same verbs in the same "
                    "order. Tensors are contiguous and stay untouched until wait().")
      .def(py::init<std::string>(), py::arg("name") = "self",
           "The identity: a group of one rank.")
      .def_property_readonly("rank", &Group::rank, "Rank within the group.")
      .def_property_readonly("size", &Group::size, "Number of ranks.")
      .def_property_readonly("name", &Group::name, "Name of the mesh axis.")
      .def("all_reduce", &Group::all_reduce, py::arg("tensor"), py::kw_only(),
           py::arg("op") = collectives::ReduceOp::kSum, Released(),
           "Reduce over all ranks in place.")
      .def("all_gather", &Group::all_gather, py::arg("out"), py::arg("input"),
           Released(), "Concatenate the ranks' input [k] into out [size * k].")
      .def("reduce_scatter", &Group::reduce_scatter, py::arg("out"), py::arg("input"),
           Released(), "Sum piece `rank` of the ranks' input [size * k] into out [k].")
      .def("all_to_all", &Group::all_to_all, py::arg("out"), py::arg("input"),
           py::kw_only(), py::arg("out_splits"), py::arg("in_splits"), Released(),
           "Send in_splits[j] rows to rank j and receive out_splits[j] rows from it.")
      .def("broadcast", &Group::broadcast, py::arg("tensor"), py::kw_only(),
           py::arg("root"), Released(), "Copy the tensor of rank `root`.")
      .def("send", &Group::send, py::arg("tensor"), py::kw_only(), py::arg("peer"),
           py::arg("tag") = 0, Released(), "Send to a rank of the group.")
      .def("recv", &Group::recv, py::arg("tensor"), py::kw_only(), py::arg("peer"),
           py::arg("tag") = 0, Released(), "Receive from a rank of the group.")
      .def("barrier", &Group::barrier, Released(), "Meet all ranks in wait().");
}

void bind_worlds(py::module_& module) {
  module.def("fake_group", &fake_group, py::arg("name"), py::kw_only(), py::arg("rank"),
             py::arg("size"), "A group whose other ranks do not exist, for dry runs.");

  py::class_<LocalWorld>(module, "LocalWorld",
                         "Ranks that are threads of this process.")
      .def(py::init([](int64_t size, double timeout_seconds) {
             return LocalWorld(size, to_milliseconds(timeout_seconds));
           }),
           py::arg("size"), py::kw_only(), py::arg("timeout_seconds"))
      .def_property_readonly("size", &LocalWorld::size, "Number of ranks.")
      .def(
          "group",
          [](const LocalWorld& world, int64_t rank, const std::string& name,
             const std::optional<std::vector<int64_t>>& ranks) {
            return gil_checked(ranks ? world.group(rank, name, *ranks)
                                     : world.group(rank, name));
          },
          py::arg("rank"), py::kw_only(), py::arg("name") = "world",
          py::arg("ranks") = py::none(),
          "The group of `ranks` (default all), in that order, as seen by `rank`.")
      .def(
          "set_timeout",
          [](const LocalWorld& world, double seconds) {
            world.set_timeout(to_milliseconds(seconds));
          },
          py::arg("seconds"), Released(),
          "Longest wait for one operation, of waits that begin after it.")
      .def("set_patient", &LocalWorld::set_patient, py::arg("rank"), py::arg("patient"),
           Released(), "Whether waits of the rank have no deadline.")
      .def(
          "abort",
          [](const LocalWorld& world, const std::string& cause) {
            world.abort(std::make_exception_ptr(CollectiveError(cause)));
          },
          py::arg("cause"), Released(),
          "Make every rank throw CollectiveError(cause); the first cause stays.");
}

void bind_recorder(py::module_& module) {
  py::class_<Traffic>(module, "Traffic", "Totals, such as of one verb on one group.")
      .def_readonly("calls", &Traffic::calls)
      .def_readonly("bytes", &Traffic::bytes, "Of the larger side of each call.")
      .def_readonly("seconds", &Traffic::seconds,
                    "That callers spent in verbs and in waiting for them.");

  py::class_<Recorder, std::shared_ptr<Recorder>>(
      module, "Recorder", "Calls, bytes and seconds of the groups it records.")
      .def(py::init<>())
      .def("totals", &Recorder::totals, "Traffic by (group name, verb).")
      .def("totals_by_group", &Recorder::totals_by_group,
           "Traffic by group name, all verbs together.")
      .def("total", &Recorder::total, py::arg("group"), py::arg("verb"),
           "Traffic of one verb on one group; zeros if it was never called.")
      .def("reset", &Recorder::reset, "Forget everything.");

  module.def("recorded", &recorded, py::arg("group"), py::arg("recorder"),
             "The same group, counted by the recorder.");
}

void bind_flight_recorder(py::module_& module) {
  py::class_<FlightRecorder, std::shared_ptr<FlightRecorder>>(
      module, "FlightRecorder", "The last collectives of a rank, for a JSON file.")
      .def(py::init([](int64_t rank, int64_t size, int64_t capacity,
                       const std::string& run, const std::string& path) {
             return std::make_shared<FlightRecorder>(FlightOptions{.rank = rank,
                                                                   .size = size,
                                                                   .capacity = capacity,
                                                                   .run = run,
                                                                   .path = path});
           }),
           py::kw_only(), py::arg("rank"), py::arg("size"), py::arg("capacity"),
           py::arg("run"), py::arg("path"))
      .def_property("step", &FlightRecorder::step, &FlightRecorder::set_step,
                    "Training step that later collectives are noted with.")
      .def("to_json", &FlightRecorder::to_json, py::arg("cause"), Released(),
           "The text of the file.")
      .def("write", &FlightRecorder::write, py::arg("cause"), Released(),
           "Replace the file; RuntimeError if that fails.")
      .def(
          "write_on_abort",
          [](const std::shared_ptr<FlightRecorder>& recorder,
             const std::shared_ptr<Watch>& watch) { write_on_abort(*watch, recorder); },
          py::arg("watch"), "Write the file once the watch is aborted.");

  module.def("traced", &traced, py::arg("group"), py::arg("recorder"), py::kw_only(),
             py::arg("ranks"),
             "The same group, recorded; ranks are those of the world, in its order.");
}

void bind_processes(py::module_& module) {
  py::class_<Watch, std::shared_ptr<Watch>>(
      module, "Watch", "Deadline and abort of all waits of this process.")
      .def(py::init([](double timeout_seconds) {
             return std::make_shared<Watch>(to_milliseconds(timeout_seconds));
           }),
           py::kw_only(), py::arg("timeout_seconds"))
      .def_property(
          "timeout_seconds",
          [](const Watch& watch) {
            return std::chrono::duration<double>(watch.timeout()).count();
          },
          [](Watch& watch, double seconds) {
            watch.set_timeout(to_milliseconds(seconds));
          },
          "Longest wait for one operation.")
      .def_property(
          "patient", &Watch::patient, &Watch::set_patient,
          "Whether waits have no deadline, as long as a heartbeat guards them.")
      .def_property("step", &Watch::step, &Watch::set_step,
                    "Training step, for messages; -1 before the first.")
      .def_property_readonly("aborted", &Watch::aborted, "Whether abort() was called.")
      .def("abort", &Watch::abort, py::arg("cause"), Released(),
           "End all waits with CollectiveError(cause); the first cause stays.")
      .def("close", &Watch::close, Released(),
           "Drop the process groups of all groups; call before they are destroyed.");

  py::class_<Heartbeat>(module, "Heartbeat",
                        "Announces this rank in a store and names those that are lost.")
      .def(
          py::init([](const c10::intrusive_ptr<c10d::Store>& store, int64_t rank,
                      int64_t size, double interval_seconds,
                      const std::string& store_owner, double longest_idle_seconds,
                      const std::shared_ptr<Watch>& watch) {
            return std::make_unique<Heartbeat>(
                store,
                HeartbeatOptions{.rank = rank,
                                 .size = size,
                                 .interval = to_milliseconds(interval_seconds),
                                 .store_owner = store_owner,
                                 .longest_idle = to_milliseconds(longest_idle_seconds)},
                watch);
          }),
          py::arg("store"), py::kw_only(), py::arg("rank"), py::arg("size"),
          py::arg("interval_seconds"), py::arg("store_owner"),
          py::arg("longest_idle_seconds"), py::arg("watch"), Released())
      .def("report", &Heartbeat::report, py::arg("cause"), Released(),
           "Publish why this rank ends the run; returns the first cause of all ranks.")
      .def("stop", &Heartbeat::stop, Released(), "End the thread.")
      .def("leave", &Heartbeat::leave, Released(),
           "End the thread of a rank that has done its part of the run.");

  module.def(
      "c10d_group",
      [](const c10::intrusive_ptr<c10d::ProcessGroup>& process_group,
         const std::string& name, const std::shared_ptr<Watch>& watch) {
        return gil_checked(c10d_group(process_group, name, watch));
      },
      py::arg("process_group"), py::kw_only(), py::arg("name"), py::arg("watch"),
      "The ranks of a torch.distributed process group.");
}

}  // namespace

void bind_collectives(py::module_ module) {
  py::register_exception<CollectiveError>(module, "CollectiveError", PyExc_RuntimeError)
      .attr("__doc__") =
      "A collective failed: one line, with the rank to blame where it is known.";
  bind_group(module);
  bind_worlds(module);
  bind_recorder(module);
  bind_processes(module);
  bind_flight_recorder(module);
}

}  // namespace torchtitan::bindings
