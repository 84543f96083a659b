// Precompiled once for the sources of the extension module.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <pybind11/functional.h>
#include <pybind11/stl.h>
