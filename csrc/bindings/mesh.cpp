#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "mesh/mesh.h"
#include "mesh/placements.h"
#include "mesh/relayout.h"

#include "bindings/module.h"

namespace torchtitan::bindings {
namespace {

using mesh::Box;
using mesh::Copy;
using mesh::Layout;
using mesh::Replication;
using mesh::Split;

using Axes = std::vector<std::pair<std::string, int64_t>>;

std::vector<Replication> to_replications(const Axes& axes) {
  std::vector<Replication> replications;
  for (const auto& [axis, size] : axes) replications.push_back({axis, size});
  return replications;
}

void bind_layout(py::module_& module) {
  py::class_<Box>(module, "Box", "A hyper-rectangle of a tensor.")
      .def(py::init([](std::vector<int64_t> offset, std::vector<int64_t> size) {
             return Box{std::move(offset), std::move(size)};
           }),
           py::kw_only(), py::arg("offset"), py::arg("size"))
      .def_readonly("offset", &Box::offset)
      .def_readonly("size", &Box::size)
      .def("num_elements", &Box::num_elements)
      .def("__eq__", [](const Box& a, const Box& b) { return a == b; });

  py::class_<Split>(module, "Split", "Cuts one dim into parts along a mesh axis.")
      .def(py::init([](std::string axis, int64_t parts, int64_t dim,
                       std::vector<int64_t> boundaries, int64_t repeat) {
             return Split{std::move(axis), parts, dim, std::move(boundaries), repeat};
           }),
           py::kw_only(), py::arg("axis"), py::arg("parts"), py::arg("dim"),
           py::arg("boundaries") = std::vector<int64_t>(), py::arg("repeat") = 1)
      .def_readonly("axis", &Split::axis)
      .def_readonly("parts", &Split::parts)
      .def_readonly("dim", &Split::dim)
      .def_readonly("boundaries", &Split::boundaries,
                    "parts + 1 positions; empty: the pieces of torch.chunk.")
      .def_readonly("repeat", &Split::repeat,
                    "Neighbours on the axis that hold the same part.");

  py::class_<Layout>(module, "Layout", "Which box of a tensor every rank holds.")
      .def(
          py::init([](std::vector<int64_t> global_shape, std::vector<Split> splits,
                      const Axes& replications) {
            return Layout(std::move(global_shape), std::move(splits),
                          to_replications(replications));
          }),
          py::arg("global_shape"), py::kw_only(),
          py::arg("splits") = std::vector<Split>(), py::arg("replications") = Axes(),
          "Splits apply in order; replications are (axis, size). Raises ValueError for "
          "what does not fit the tensor.")
      .def_property_readonly("global_shape", &Layout::global_shape)
      .def_property_readonly("splits", &Layout::splits)
      .def("box", &Layout::box, py::arg("coordinates"), "The box held there.")
      .def("is_writer", &Layout::is_writer, py::arg("coordinates"),
           "Whether this rank is the one of those with its box that writes it.")
      .def("writers", &Layout::writers, "Coordinates of all writers.")
      .def("num_shards", &Layout::num_shards)
      .def(
          "to_placements",
          [](const Layout& layout, const Axes& axes) {
            std::vector<std::string> placements;
            for (const auto& p : mesh::to_placements(layout, to_replications(axes))) {
              placements.push_back(to_string(p));
            }
            return placements;
          },
          py::arg("axes"),
          "As DTensor prints them, one for each (axis, size) of a device mesh. Raises "
          "ValueError for what DTensor cannot say.");

  py::class_<Copy>(module, "Copy", "The box that one shard gives to another.")
      .def_readonly("source", &Copy::source)
      .def_readonly("target", &Copy::target)
      .def_readonly("box", &Copy::box, "In indices of the whole tensor.");
  module.def("relayout", &mesh::relayout, py::arg("source"), py::arg("target"),
             py::call_guard<py::gil_scoped_release>(),
             "The copies that turn the shards of one layout into those of another; "
             "shards count as in writers().");
}

}  // namespace

void bind_mesh(py::module_ module) {
  bind_layout(module);
  using mesh::Mesh;
  using mesh::ParallelDims;
  py::class_<ParallelDims>(module, "ParallelDims", "The degree of every parallelism.")
      .def(py::init([](int64_t dp_replicate, int64_t dp_shard, int64_t cp, int64_t tp,
                       int64_t pp, int64_t ep, int64_t etp, int64_t world_size) {
             return ParallelDims{.dp_replicate = dp_replicate,
                                 .dp_shard = dp_shard,
                                 .cp = cp,
                                 .tp = tp,
                                 .pp = pp,
                                 .ep = ep,
                                 .etp = etp,
                                 .world_size = world_size};
           }),
           py::kw_only(), py::arg("dp_replicate"), py::arg("dp_shard"), py::arg("cp"),
           py::arg("tp"), py::arg("pp"), py::arg("ep"), py::arg("etp"),
           py::arg("world_size"))
      .def_readonly("dp_replicate", &ParallelDims::dp_replicate)
      .def_readonly("dp_shard", &ParallelDims::dp_shard)
      .def_readonly("cp", &ParallelDims::cp)
      .def_readonly("tp", &ParallelDims::tp)
      .def_readonly("pp", &ParallelDims::pp)
      .def_readonly("ep", &ParallelDims::ep)
      .def_readonly("etp", &ParallelDims::etp)
      .def_readonly("world_size", &ParallelDims::world_size);
  py::class_<Mesh>(module, "Mesh", "Ranks as a grid of named axes.")
      .def(py::init<const ParallelDims&>(), py::arg("dims"),
           "Infers dp_shard where it is -1. Raises ValueError listing every broken "
           "rule.")
      .def_property_readonly("dims", &Mesh::dims, "The degrees, resolved.")
      .def("axes", &Mesh::axes, "Names of all axes.")
      .def("size", &Mesh::size, py::arg("axis"), "Ranks along an axis.")
      .def("coordinates", &Mesh::coordinates, py::arg("rank"),
           "Position of a rank on every axis.")
      .def("coordinate", &Mesh::coordinate, py::arg("rank"), py::arg("axis"),
           "Position of a rank on an axis.")
      .def("ranks", &Mesh::ranks, py::arg("axis"), py::arg("rank"),
           "The ranks of this rank's group on an axis, in order.");
}

}  // namespace torchtitan::bindings
