#include <torch/csrc/utils/pybind.h>

#include <ATen/ops/empty.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "nn/attention_kernel.h"
#include "nn/detached_call.h"
#include "nn/host_store.h"
#include "nn/initialize.h"
#include "nn/loss_segment.h"
#include "nn/model.h"
#include "nn/parameter_group.h"
#include "nn/vocabulary_loss.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

namespace {

// Name, whether it stays gathered, and name and shape of its parameters.
using GroupParts =
    std::tuple<std::string, bool,
               std::vector<std::pair<std::string, std::vector<int64_t>>>>;
// Name and indices of its groups.
using SegmentParts = std::pair<std::string, std::vector<int64_t>>;

nn::Model make_model(const std::vector<GroupParts>& groups,
                     const std::vector<SegmentParts>& segments,
                     nn::OwnForward forward) {
  nn::Model model;
  for (const auto& [name, stays_gathered, parameters] : groups) {
    nn::ParameterGroupSpec spec{
        .name = name, .parameters = {}, .stays_gathered = stays_gathered};
    for (const auto& [parameter, shape] : parameters) {
      spec.parameters.push_back({parameter, shape, nn::Init::constant(0)});
    }
    model.groups.push_back(std::move(spec));
  }
  for (const auto& [name, uses] : segments) {
    std::vector<nn::ParameterRef> references;
    for (const int64_t group : uses) {
      const auto size = model.groups.at(static_cast<size_t>(group)).parameters.size();
      for (size_t slot = 0; slot < size; ++slot) {
        references.push_back({group, static_cast<int64_t>(slot)});
      }
    }
    model.segments.push_back(
        std::make_shared<nn::CalledSegment>(name, std::move(references)));
  }
  model.own_forward = std::move(forward);
  return model;
}

// Python's hooks of saved tensors, while it lives.
class Hooks {
 public:
  Hooks(const py::cpp_function& pack, const py::cpp_function& unpack) {
    autograd().attr("_push_saved_tensors_default_hooks")(pack, unpack);
  }
  ~Hooks() { autograd().attr("_pop_saved_tensors_default_hooks")(); }
  Hooks(const Hooks&) = delete;
  Hooks& operator=(const Hooks&) = delete;

 private:
  static py::module_ autograd() { return py::module_::import("torch._C._autograd"); }
};

// The graph holds the places, and through them whatever is there when it needs it.
nn::SavedPlaces record_saved_tensors(const std::function<void()>& forward) {
  using Place = std::shared_ptr<at::Tensor>;
  const auto places = std::make_shared<nn::SavedPlaces>();
  const py::gil_scoped_acquire gil;
  const Hooks hooks(
      py::cpp_function([places](const at::Tensor& tensor) {
        // A leaf comes itself, and may drop its memory.
        places->push_back(std::make_shared<at::Tensor>(tensor.detach()));
        return py::capsule(new Place(places->back()),
                           [](void* place) { delete static_cast<Place*>(place); });
      }),
      py::cpp_function([](const py::capsule& capsule) {
        const auto& place = *capsule.get_pointer<Place>();
        TORCH_CHECK(
            place->defined(),
            "a tensor that waits in host memory for the backward of its segment "
            "is needed before that");
        return *place;
      }));
  {
    const py::gil_scoped_release released;
    forward();
  }
  return std::move(*places);
}

}  // namespace

void bind_nn(py::module_ module) {
  py::class_<nn::Progress, std::unique_ptr<nn::Progress, py::nodelete>>(
      module, "Progress",
      "The step's program around a model with a forward of its own.")
      .def(
          "call",
          [](nn::Progress& progress, int64_t segment, const nn::TensorList& inputs,
             const nn::TensorFunction& function, std::optional<nn::Again> again) {
            return nn::detached_call(segment, inputs, function,
                                     again ? std::move(*again) : nn::Again(), progress);
          },
          py::arg("segment"), py::arg("inputs"), py::arg("function"), py::arg("again"),
          py::call_guard<py::gil_scoped_release>(),
          "Run `function` on detached inputs as a segment, with `again`, if not None, at "
          "its Recompute, and let the program go on to "
          "the next one. The results have one node of the caller's graph behind them.");
  py::class_<nn::AttentionKernel, std::shared_ptr<nn::AttentionKernel>>(
      module, "AttentionKernel",
      "How queries meet keys, and which tokens of each sequence are here.")
      .def_property_readonly("ranks", &nn::AttentionKernel::ranks,
                             "Ranks that share each sequence.")
      .def(
          "deal", &nn::AttentionKernel::deal, py::arg("batch"),
          "This rank's tokens of `input` and `labels` [B, S]; the rest of the batch as "
          "it is.");
  module.def("local_attention", &nn::local_attention, "Whole sequences on this rank.");
  py::class_<nn::ParameterSpec>(module, "ParameterSpec",
                                "Name, shape and initial distribution of a parameter.")
      .def_readonly("name", &nn::ParameterSpec::name)
      .def_readonly("shape", &nn::ParameterSpec::shape)
      .def_property_readonly("whole_shape", &nn::ParameterSpec::whole_shape,
                             "Of the whole parameter, of which a rank of a tensor axis "
                             "may have a piece.")
      .def_property_readonly("offset", &nn::ParameterSpec::offset,
                             "Of the piece's first element in it.");
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
      .def("with_loss", &nn::with_loss, py::arg("function"),
           "This model, which ends in logits, with a last segment that calls "
           "`function(logits, labels)` for the sum of the loss.")
      .def("forward", &nn::forward, py::arg("parameters"), py::arg("values"),
           py::call_guard<py::gil_scoped_release>(),
           "Run all segments as one differentiable function. `parameters` are lists of "
           "tensors by group; returns `values` and every segment's outputs by name.");

  py::class_<nn::ParameterShard>(module, "ParameterShard",
                                 "This rank's box of one parameter.")
      .def_readonly("name", &nn::ParameterShard::name)
      .def_readonly("global_shape", &nn::ParameterShard::global_shape)
      .def_readonly("offset", &nn::ParameterShard::offset)
      .def_readonly("value", &nn::ParameterShard::value)
      .def_readonly("gradient", &nn::ParameterShard::gradient)
      .def_readonly("is_writer", &nn::ParameterShard::is_writer);
  py::class_<nn::ParameterGroup, std::shared_ptr<nn::ParameterGroup>>(
      module, "ParameterGroup", "Parameters in one flat local buffer.")
      .def_property_readonly("name",
                             [](const nn::ParameterGroup& g) { return g.spec().name; })
      .def_property_readonly("shards", &nn::ParameterGroup::shards)
      .def_property_readonly("leaves", &nn::ParameterGroup::leaves,
                             "The whole parameters; memory only while gathered.")
      .def_property_readonly("master", &nn::ParameterGroup::master)
      .def_property_readonly("gradient", &nn::ParameterGroup::gradient)
      .def("shard_views", &nn::ParameterGroup::shard_views, py::arg("flat"),
           "Views of a flat buffer laid out like `master`, in the shapes of `shards`.")
      .def("initialize", &nn::ParameterGroup::initialize, py::arg("seed"),
           py::call_guard<py::gil_scoped_release>(),
           "Fill `master` with the initial numbers of (seed, name, global element).");
  py::class_<nn::HostStore, std::shared_ptr<nn::HostStore>>(
      module, "HostStore", "Host memory for what blocks keep for their backward.")
      .def_property_readonly(
          "memory",
          [](nn::HostStore& host) -> core::MemoryCounter& { return host.memory(); },
          py::return_value_policy::reference_internal, "Its bytes.")
      .def_property_readonly("moves", &nn::HostStore::moves,
                             "False where host memory is the memory of the device.");
  module.def("host_is_device", &nn::host_is_device,
             "For a CPU, where everything stays where it is.");
  module.def(
      "copies_on_host", [] { return nn::copies_on_host(record_saved_tensors); },
      "Copies to pinned memory, on a CPU to memory that is not counted as the "
      "device's.");
  module.def(
      "make_model", &make_model, py::arg("groups"), py::arg("segments"),
      py::arg("forward"),
      "A model whose own code calls its segments: `forward(batch, progress)` gives "
      "the sum of the loss and passes each segment by `progress.call`. Groups are "
      "(name, stays gathered, [(parameter, shape)]), segments (name, [group]); the "
      "last segment is what comes after the last call.");
  module.def(
      "vocabulary_loss_sum",
      [](const at::Tensor& logits, const at::Tensor& labels, int64_t first,
         const collectives::Group& axis) {
        return nn::vocabulary_loss_sum(logits.flatten(0, -2), labels.flatten(), first,
                                       nn::TensorAxis(axis, nn::Overlap::kNone));
      },
      py::arg("logits"), py::arg("labels"), py::kw_only(), py::arg("first"),
      py::arg("axis"), py::call_guard<py::gil_scoped_release>(),
      "The sum of the cross-entropy, float64 [], of logits [..., v] of which each rank of "
      "`axis` has the classes from `first` on, for labels [...]. Differentiable.");
  module.def(
      "initial_value",
      [](const nn::ParameterSpec& parameter, uint64_t seed) {
        auto value = at::empty(parameter.shape, at::kFloat);
        nn::fill_initial(value, parameter, parameter.offset(), seed);
        return value;
      },
      py::arg("parameter"), py::arg("seed"), py::call_guard<py::gil_scoped_release>(),
      "The whole parameter's initial numbers, float32 on the CPU.");
}

}  // namespace torchtitan::bindings
