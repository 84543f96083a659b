# Finds the LibTorch inside the torch package of the Python found, without importing
# torch (an isolated build environment does not have it on its path).
#   result: target torchtitan_libtorch, TORCHTITAN_TORCH_VERSION, TORCH_PYTHON_LIBRARY
if(NOT TORCHTITAN_TORCH_ROOT)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE TORCHTITAN_TORCH_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
if(NOT EXISTS "${TORCHTITAN_TORCH_ROOT}/lib/libtorch_cpu.so")
  message(FATAL_ERROR
    "torchtitan_cpp builds against the torch package it will run with, but found none "
    "at '${TORCHTITAN_TORCH_ROOT}' for ${Python_EXECUTABLE}.\n"
    "Run: ${Python_EXECUTABLE} -m pip install torch==2.13.0\n"
    "or pass -DTORCHTITAN_TORCH_ROOT=<site-packages>/torch")
endif()
file(STRINGS "${TORCHTITAN_TORCH_ROOT}/version.py" version_line REGEX "^__version__")
string(REGEX MATCH "[0-9][^'\"]*" TORCHTITAN_TORCH_VERSION "${version_line}")
message(STATUS "torch ${TORCHTITAN_TORCH_VERSION} at ${TORCHTITAN_TORCH_ROOT}")

set(TORCH_PYTHON_LIBRARY "${TORCHTITAN_TORCH_ROOT}/lib/libtorch_python.so")

# One interface target, not find_package(Torch): that of a CUDA build asks for the whole
# CUDA toolkit, which only kernels need. The definitions are those that it gives. Headers
# are system headers: their warnings are not ours, and torch's own pybind11 must win over
# any other that is installed.
add_library(torchtitan_libtorch INTERFACE)
target_link_libraries(torchtitan_libtorch INTERFACE
  "${TORCHTITAN_TORCH_ROOT}/lib/libtorch_cpu.so" "${TORCHTITAN_TORCH_ROOT}/lib/libc10.so")
# The CUDA libraries below those of a CUDA build are found when they are loaded.
target_link_options(torchtitan_libtorch INTERFACE -Wl,--allow-shlib-undefined)
target_include_directories(torchtitan_libtorch SYSTEM BEFORE INTERFACE
  "${TORCHTITAN_TORCH_ROOT}/include" "${TORCHTITAN_TORCH_ROOT}/include/torch/csrc/api/include")
# at::parallel_for lies in a header and runs on one thread where this flag is missing.
# The library is torch's own, which has the same name as the compiler's.
target_compile_options(torchtitan_libtorch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
target_link_options(torchtitan_libtorch INTERFACE -fopenmp)
target_compile_definitions(torchtitan_libtorch INTERFACE
  AT_PER_OPERATOR_HEADERS USE_DISTRIBUTED USE_C10D_GLOO USE_RPC USE_TENSORPIPE)
