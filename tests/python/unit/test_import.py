"""Importing loads only the package, starts nothing, and refuses another torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import torchtitan_cpp
from torchtitan_cpp import _C
from torchtitan_cpp._version_check import check_torch_version


def test_extension_was_built_against_the_running_torch() -> None:
    assert _C.core.compiled_torch_version() == torch.__version__.split("+")[0]
    assert torchtitan_cpp.__version__


def test_another_torch_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    built = _C.core.compiled_torch_version()
    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    with pytest.raises(ImportError, match="2.99.0 is installed; rebuild") as error:
        check_torch_version()
    assert f"built against torch {built}" in str(error.value)


def test_an_extension_that_does_not_load_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torchtitan_cpp, "_C")
    monkeypatch.setitem(sys.modules, "torchtitan_cpp._C", None)
    with pytest.raises(ImportError, match="does not load with torch .*; rebuild"):
        check_torch_version()


def test_import_starts_nothing_and_loads_nothing_but_the_package() -> None:
    # What torch has not loaded already (its compiler, its checkpoints, data sets) is
    # loaded where it is used: scripts/bench/import_time.py tells what the import takes.
    program = """
import os, sys, threading, torch
before = set(sys.modules), threading.active_count(), os.listdir("/proc/self/task")
import torchtitan_cpp
added = set(sys.modules) - before[0]
own = {name for name in added if name.split(".")[0] == "torchtitan_cpp"}
print("torchtitan_cpp._C" in own)
print(sorted(n for n in added - own if n.split(".")[0] not in sys.stdlib_module_names))
print(threading.active_count() - before[1])
print(len(os.listdir("/proc/self/task")) - len(before[2]))
print(torch.distributed.is_initialized())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == ["True", "[]", "0", "0", "False", ""]
