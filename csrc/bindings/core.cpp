#include "core/version.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_core(py::module_ module) {
  module.def("compiled_torch_version", &core::compiled_torch_version,
             "Version of the torch whose headers the extension was compiled with.");
}

}  // namespace torchtitan::bindings
