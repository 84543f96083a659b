# Kernels (csrc/**/*.cu) include no torch header, so nvcc compiles and checks them beside
# a CPU-only torch too. They are linked only when torch itself is a CUDA build.
#   TORCHTITAN_CUDA   AUTO: when there are kernels and nvcc is found; ON; OFF
#   result: TORCHTITAN_CUDA_ENABLED, TORCHTITAN_CUDA_LINKED
set(TORCHTITAN_CUDA AUTO CACHE STRING "Compile the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE TORCHTITAN_CUDA PROPERTY STRINGS AUTO ON OFF)

set(TORCHTITAN_CUDA_ENABLED OFF)
set(TORCHTITAN_CUDA_LINKED OFF)
file(GLOB_RECURSE kernels CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/*.cu")
if(TORCHTITAN_CUDA STREQUAL "ON" OR (TORCHTITAN_CUDA STREQUAL "AUTO" AND kernels))
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 90a)
    endif()
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    set(TORCHTITAN_CUDA_ENABLED ON)
    if(EXISTS "${TORCHTITAN_TORCH_ROOT}/lib/libtorch_cuda.so")
      set(TORCHTITAN_CUDA_LINKED ON)
    endif()
  elseif(TORCHTITAN_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "TORCHTITAN_CUDA is ON, but nvcc was not found. Put it on PATH, or pass "
      "-DCMAKE_CUDA_COMPILER=<path of nvcc>")
  endif()
endif()
message(STATUS "CUDA kernels: compiled ${TORCHTITAN_CUDA_ENABLED}, linked ${TORCHTITAN_CUDA_LINKED}")

# Adds the kernels of a layer as a library of their own, compiled in any case.
function(torchtitan_layer_kernels name path)
  file(GLOB kernels CONFIGURE_DEPENDS "${path}/*.cu")
  if(NOT kernels OR NOT TORCHTITAN_CUDA_ENABLED)
    return()
  endif()
  add_library(${name}_kernels STATIC ${kernels})
  target_include_directories(${name}_kernels PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
  if(TORCHTITAN_CUDA_LINKED)
    target_link_libraries(${name} PUBLIC ${name}_kernels)
  endif()
endfunction()
