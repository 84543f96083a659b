#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "mesh/mesh.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_mesh(py::module_ module) {
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
           "Infers dp_shard where it is -1. Raises ValueError listing every broken rule.")
      .def_property_readonly("dims", &Mesh::dims, "The degrees, resolved.")
      .def("axes", &Mesh::axes, "Names of all axes.")
      .def("size", &Mesh::size, py::arg("axis"), "Ranks along an axis.")
      .def("coordinate", &Mesh::coordinate, py::arg("rank"), py::arg("axis"),
           "Position of a rank on an axis.")
      .def("ranks", &Mesh::ranks, py::arg("axis"), py::arg("rank"),
           "The ranks of this rank's group on an axis, in order.");
}

}  // namespace torchtitan::bindings
