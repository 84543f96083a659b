#include <cmath>

#include "core/bit_hash.h"
#include "core/cpu_allocator.h"
#include "core/memory_counter.h"
#include "core/stop_flag.h"
#include "core/version.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_core(py::module_ module) {
  py::class_<core::MemoryCounter>(module, "MemoryCounter",
                                  "Tensor bytes, counted where they are allocated.")
      .def_property_readonly("live", &core::MemoryCounter::live, "Bytes alive now.")
      .def_property_readonly("peak", &core::MemoryCounter::peak,
                             "Largest live since the last reset_peak().")
      .def("reset_peak", &core::MemoryCounter::reset_peak);
  module.def("cpu_memory", &core::cpu_memory, py::return_value_policy::reference,
             "Bytes of CPU tensors. The first call puts the allocator that counts and "
             "keeps pages in place of torch's.");
  module.def(
      "thread_memory", &core::thread_memory, py::return_value_policy::reference,
      "Bytes of CPU tensors that the calling thread makes from its first call on, "
      "whoever frees them.");
  module.def("release_kept_cpu_memory", &core::release_kept_cpu_memory,
             "Give pages that are kept for reuse back to the system.",
             py::call_guard<py::gil_scoped_release>());
  module.def("meta_memory", &core::meta_memory, py::return_value_policy::reference,
             "Bytes that meta tensors made after the first call would have.");
  module.def("compiled_torch_version", &core::compiled_torch_version,
             "Version of the torch whose headers the extension was compiled with.");
  module.def("hash_bits", &core::hash_bits, py::arg("tensors"),
             py::call_guard<py::gil_scoped_release>(),
             "One int64 for the bits of each tensor, as a CPU tensor [n].");
  module.def(
      "install_stop_signal",
      [](double echo_seconds) {
        core::install_stop_signal(
            std::chrono::milliseconds(std::llround(echo_seconds * 1000)));
      },
      py::kw_only(), py::arg("echo_seconds"),
      "Take SIGTERM over: the first one sets a flag, one that comes\n"
      "echo_seconds or more later ends the process.");
  module.def("stop_requested", &core::stop_requested,
             "Whether SIGTERM has come since install_stop_signal().");
}

}  // namespace torchtitan::bindings
