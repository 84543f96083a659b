#include "core/stop_flag.h"
#include "core/version.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_core(py::module_ module) {
  module.def("compiled_torch_version", &core::compiled_torch_version,
             "Version of the torch whose headers the extension was compiled with.");
  module.def(
      "install_stop_signal", &core::install_stop_signal,
      "Take SIGTERM over: the first one sets a flag, the second ends the process.");
  module.def("stop_requested", &core::stop_requested,
             "Whether SIGTERM has come since install_stop_signal().");
}

}  // namespace torchtitan::bindings
