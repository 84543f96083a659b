// One function per folder of csrc/ that Python can see; each is defined in the file of
// the same name and fills the submodule torchtitan_cpp._C.<folder>.
#pragma once

#include <pybind11/pybind11.h>

namespace torchtitan::bindings {

namespace py = pybind11;

void bind_collectives(py::module_ module);
void bind_config(py::module_ module);
void bind_core(py::module_ module);
void bind_generation(py::module_ module);
void bind_mesh(py::module_ module);
void bind_models_llama(py::module_ module);
void bind_models_sleeping(py::module_ module);
void bind_nn(py::module_ module);
void bind_optim(py::module_ module);
void bind_parallel(py::module_ module);
void bind_plan(py::module_ module);
void bind_plan_pipeline(py::module_& module);  // into the module of bind_plan
void bind_storage(py::module_ module);
void bind_train(py::module_ module);
void bind_data(py::module_ module);

}  // namespace torchtitan::bindings
