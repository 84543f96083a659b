#include "bindings/module.h"

PYBIND11_MODULE(_C, module) {
  using namespace torchtitan::bindings;
  module.doc() = "C++ core of torchtitan_cpp; one submodule per folder of csrc/.";
  bind_core(module.def_submodule("core"));
  bind_data(module.def_submodule("data"));
}
