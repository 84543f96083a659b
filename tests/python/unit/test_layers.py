"""The layer check finds each kind of violation, and none in this project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

TABLE = """
[[row]]
folders = ["bindings"]
[[row]]
folders = ["nn", "optim"]
[[row]]
folders = ["core"]
[[row]]
torch = false
folders = ["base"]
"""
CMAKE = """
torchtitan_layer(base NO_TORCH)
torchtitan_layer(core DEPS base)
torchtitan_layer(nn DEPS core)
torchtitan_layer(optim DEPS core)
"""
GOOD = {
    "csrc/layers.toml": TABLE,
    "csrc/CMakeLists.txt": CMAKE,
    "csrc/base/errors.h": "#include <string>\n",
    "csrc/core/check.h": '#include <ATen/core/Tensor.h>\n#include "base/errors.h"\n',
    "csrc/nn/linear.h": '#include "core/check.h"\n',
    "csrc/nn/linear.cpp": '#include "nn/linear.h"\n',
    "csrc/optim/adam.h": "",
    "csrc/bindings/nn.cpp": '#include <pybind11/stl.h>\n#include "nn/linear.h"\n',
    "tests/cpp/nn/linear_test.cpp": '#include "nn/linear.h"\n',
}


def run(tmp_path: Path, changes: dict[str, str]) -> tuple[int, str]:
    for name, text in {**GOOD, **changes}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_layers.py", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.returncode, done.stdout


def test_accepts_a_tree_that_follows_the_table(tmp_path: Path) -> None:
    assert run(tmp_path, {}) == (0, "")


BAD = {
    "a row above": (
        {"csrc/core/check.cpp": '\n#include "nn/linear.h"\n'},
        "csrc/core/check.cpp:2: core may not include nn, a row above it: nn/linear.h",
    ),
    "a neighbour": (
        {"csrc/optim/adam.cpp": '#include "nn/linear.h"\n'},
        "optim may not include its neighbour nn: nn/linear.h",
    ),
    "a neighbour in angle brackets": (
        {"csrc/optim/adam.cpp": "#include <nn/linear.h>\n"},
        "optim may not include its neighbour nn: nn/linear.h",
    ),
    "an unknown header in quotes": (
        {"csrc/nn/linear.cpp": '#include "nn/lineal.h"\n'},
        '"nn/lineal.h" is not a file of csrc/',
    ),
    "LibTorch in a row without it": (
        {"csrc/base/errors.h": "#include <c10/util/Exception.h>\n"},
        "base may not include LibTorch, found <c10/util/Exception.h>",
    ),
    "LibTorch in a kernel": (
        {"csrc/nn/linear.cu": "#include <ATen/core/Tensor.h>\n"},
        "a .cu file may not include LibTorch",
    ),
    "pybind11 outside bindings": (
        {"csrc/nn/linear.cpp": "#include <pybind11/pybind11.h>\n"},
        "only bindings may include Python, found <pybind11/pybind11.h>",
    ),
    "torch's Python headers outside bindings": (
        {"csrc/nn/linear.cpp": "#include <torch/csrc/autograd/python_variable.h>\n"},
        "only bindings may include Python",
    ),
    "a header that includes all of torch": (
        {"csrc/bindings/nn.cpp": "#include <torch/extension.h>\n"},
        "<torch/extension.h> makes every build slow",
    ),
    "a folder outside the table": (
        {"csrc/ops/add.cpp": ""},
        "csrc/ops/add.cpp:1: folder 'ops' is not in csrc/layers.toml",
    ),
    "a folder listed twice": (
        {"csrc/layers.toml": TABLE + '[[row]]\ntorch = false\nfolders = ["nn"]\n'},
        "folder 'nn' is listed twice",
    ),
    "torch below a row without it": (
        {"csrc/layers.toml": TABLE + '[[row]]\nfolders = ["ops"]\n'},
        "is without torch, but a row below it has torch",
    ),
    "a layer that CMake does not know": (
        {"csrc/CMakeLists.txt": CMAKE.replace("torchtitan_layer(optim DEPS core)", "")},
        "torchtitan_layer(optim ...) is missing",
    ),
    "a layer that the table does not know": (
        {"csrc/CMakeLists.txt": CMAKE + "torchtitan_layer(ops DEPS core)\n"},
        "csrc/CMakeLists.txt:6: 'ops' is not in csrc/layers.toml",
    ),
    "DEPS on a neighbour": (
        {"csrc/CMakeLists.txt": CMAKE.replace("optim DEPS core", "optim DEPS core nn")},
        "optim: DEPS nn is not on a row below",
    ),
    "DEPS that miss an included folder": (
        {"csrc/CMakeLists.txt": CMAKE.replace("nn DEPS core", "nn DEPS base")},
        "csrc/CMakeLists.txt links nn without core, which it includes",
    ),
    "NO_TORCH against the table": (
        {"csrc/CMakeLists.txt": CMAKE.replace("base NO_TORCH", "base")},
        "base: NO_TORCH contradicts csrc/layers.toml",
    ),
    "tests of no folder": (
        {"tests/cpp/ops/add_test.cpp": ""},
        "tests mirror csrc/, but 'ops' is no folder of it",
    ),
    "a test that is not built": (
        {"tests/cpp/nn/linear_tests.cpp": ""},
        "expected a name that ends in _test.cpp, or a header",
    ),
    "a file over the limit": (
        {"python/torchtitan_cpp/long.py": "x = 1\n" * 401},
        "python/torchtitan_cpp/long.py:401: 401 lines, the limit is 400",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str, tmp_path: Path) -> None:
    changes, message = BAD[name]
    status, output = run(tmp_path, changes)
    assert status == 1
    assert message in output


def test_this_project_follows_its_table() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_layers.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
