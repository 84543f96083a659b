"""Kernels are compiled wherever nvcc is, also beside a CPU-only torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]

PROJECT = f"""
cmake_minimum_required(VERSION 3.22)
project(kernels LANGUAGES CXX)
include({ROOT}/cmake/Cuda.cmake)
include({ROOT}/cmake/Layers.cmake)
add_subdirectory(csrc)
"""
KERNEL = """
#include "ops/scale.h"
__global__ void scale(float* x, float by) { x[threadIdx.x] *= by; }
void launch_scale(float* x, float by, int n) { scale<<<1, n>>>(x, by); }
"""


def test_nvcc_compiles_a_kernel_or_its_absence_is_one_clear_error(
    tmp_path: Path,
) -> None:
    files = {
        "CMakeLists.txt": PROJECT,
        "csrc/CMakeLists.txt": "torchtitan_layer(ops NO_TORCH)",
        "csrc/ops/scale.h": "void launch_scale(float* x, float by, int n);",
        "csrc/ops/scale.cpp": '#include "ops/scale.h"\n',
        "csrc/ops/scale.cu": KERNEL,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    build = tmp_path / "build"
    configure = ["cmake", "-S", tmp_path, "-B", build, "-DTORCHTITAN_CUDA=ON"]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    if "nvcc was not found" in done.stderr:
        assert done.returncode != 0 and not shutil.which("nvcc")
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CUDA kernels: compiled ON, linked OFF" in done.stdout
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    library = (build / "csrc" / "libtorchtitan_ops_kernels.a").read_bytes()
    assert b"launch_scale" in library
