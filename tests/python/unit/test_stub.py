"""The typed stub equals the built module, and its writer understands pybind11."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "generate_stub.py"


def test_stub_equals_the_built_module() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def stub_of(**members: Any) -> str:
    spec = importlib.util.spec_from_file_location("generate_stub", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    module = ModuleType("package._C")
    for name, value in members.items():
        setattr(module, name, value)
    text: str = script.Writer(module).text()
    return text


def bound(doc: str) -> Any:
    """A stand-in for a function of pybind11: only its docstring is read."""

    def function() -> None: ...

    function.__doc__ = doc
    return function


def test_a_function_keeps_names_defaults_and_docs() -> None:
    text = stub_of(scale=bound("scale(x: torch.Tensor, *, by: float = 2) -> int\n\nD."))
    assert "import torch\n" in text
    assert "def scale(x: torch.Tensor, *, by: float=2) -> int:\n" in text
    assert '    """D."""' in text


def test_what_pybind11_accepts_becomes_the_plain_type() -> None:
    text = stub_of(f=bound("f(n: typing.SupportsInt | typing.SupportsIndex) -> dict\n"))
    assert "def f(n: int) -> dict[typing.Any, typing.Any]: ...\n" in text


def test_a_default_without_literal_becomes_dots() -> None:
    text = stub_of(
        f=bound("f(kind: package._C.Kind = <Kind.A: 0>) -> None\n"), Kind=int
    )
    assert "def f(kind: Kind=...) -> None: ...\n" in text


def test_a_submodule_of_a_submodule_is_a_class_in_a_class() -> None:
    models = ModuleType("package._C.models")
    llama = ModuleType("package._C.models.llama")
    setattr(llama, "layers", bound("layers() -> int\n"))  # noqa: B010
    setattr(models, "llama", llama)  # noqa: B010
    text = stub_of(models=models)
    assert "class models:\n\n    class llama:\n" in text
    assert "        def layers() -> int: ...\n" in text


def test_overloads_are_all_written() -> None:
    doc = "f(*args, **kwargs)\nOverloaded function.\n\n1. f(a: int) -> int\n\nOne.\n\n"
    text = stub_of(f=bound(doc + "2. f(a: str) -> str\n\nTwo.\n"))
    assert text.count("@typing.overload") == 2
    assert 'def f(a: int) -> int:\n    """One."""' in text
    assert 'def f(a: str) -> str:\n    """Two."""' in text


def test_unnamed_arguments_are_positional() -> None:
    text = stub_of(f=bound("f(arg0: int, arg1: int) -> int\n"))
    assert "def f(arg0: int, arg1: int, /) -> int: ...\n" in text


def test_a_type_of_cpp_is_refused() -> None:
    with pytest.raises(TypeError, match="is not a signature of Python"):
        stub_of(f=bound("f(mesh: torchtitan::mesh::Mesh) -> int\n"))
