# Finds the LibTorch inside the torch package of the Python found, without importing
# torch (an isolated build environment does not have it on its path).
#   result: targets of TorchConfig.cmake, TORCHTITAN_TORCH_VERSION, TORCH_PYTHON_LIBRARY
if(NOT TORCHTITAN_TORCH_ROOT)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE TORCHTITAN_TORCH_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
if(NOT EXISTS "${TORCHTITAN_TORCH_ROOT}/share/cmake/Torch/TorchConfig.cmake")
  message(FATAL_ERROR
    "torchtitan_cpp builds against the torch package it will run with, but found none "
    "at '${TORCHTITAN_TORCH_ROOT}' for ${Python_EXECUTABLE}.\n"
    "Run: ${Python_EXECUTABLE} -m pip install torch==2.13.0\n"
    "or pass -DTORCHTITAN_TORCH_ROOT=<site-packages>/torch")
endif()
file(STRINGS "${TORCHTITAN_TORCH_ROOT}/version.py" version_line REGEX "^__version__")
string(REGEX MATCH "[0-9][^'\"]*" TORCHTITAN_TORCH_VERSION "${version_line}")
message(STATUS "torch ${TORCHTITAN_TORCH_VERSION} at ${TORCHTITAN_TORCH_ROOT}")

# Paths inside the torch of an earlier configuration would win over this one.
if(DEFINED CACHE{TORCHTITAN_TORCH_SEEN} AND
   NOT TORCHTITAN_TORCH_SEEN STREQUAL TORCHTITAN_TORCH_ROOT)
  get_cmake_property(names CACHE_VARIABLES)
  foreach(name ${names})
    string(FIND "${${name}}" "${TORCHTITAN_TORCH_SEEN}/" position)
    if(position EQUAL 0)
      unset(${name} CACHE)
    endif()
  endforeach()
endif()
set(TORCHTITAN_TORCH_SEEN "${TORCHTITAN_TORCH_ROOT}" CACHE INTERNAL "")

set(Torch_DIR "${TORCHTITAN_TORCH_ROOT}/share/cmake/Torch")
# Torch warns of parts that a wheel has inside its other libraries.
set(CMAKE_MESSAGE_LOG_LEVEL ERROR)
find_package(Torch REQUIRED CONFIG)
unset(CMAKE_MESSAGE_LOG_LEVEL)
find_library(TORCH_PYTHON_LIBRARY torch_python REQUIRED NO_DEFAULT_PATH
             PATHS "${TORCHTITAN_TORCH_ROOT}/lib")

# One interface target. Its headers are system headers: their warnings are not ours,
# and torch's own pybind11 must win over any other that is installed.
add_library(torchtitan_libtorch INTERFACE)
target_link_libraries(torchtitan_libtorch INTERFACE ${TORCH_LIBRARIES})
target_include_directories(torchtitan_libtorch SYSTEM BEFORE INTERFACE
  "${TORCHTITAN_TORCH_ROOT}/include" "${TORCHTITAN_TORCH_ROOT}/include/torch/csrc/api/include")
target_compile_definitions(torchtitan_libtorch INTERFACE AT_PER_OPERATOR_HEADERS)
