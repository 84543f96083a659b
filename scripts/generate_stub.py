#!/usr/bin/env python3
"""Writes ``python/torchtitan_cpp/_C.pyi`` from the built extension module.

    python scripts/generate_stub.py           writes the stub
    python scripts/generate_stub.py --check   exits with 1 if the stub is out of date

The types come from the signatures that pybind11 puts at the head of each docstring. A
submodule is written as a class: ``_C`` is one file, and a type checker resolves
``_C.mesh.Layout`` the same way for both. A C++ type that pybind11 could not name in
Python's words is an error, since nobody could call that function.
"""

from __future__ import annotations

import argparse
import ast
import enum
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

STUB = Path(__file__).parents[1] / "python" / "torchtitan_cpp" / "_C.pyi"
HEADER = '"""Written by scripts/generate_stub.py from the built module; do not edit."""'
INDENT = "    "
SIGNATURE = re.compile(r"^(?:\d+\. )?(\w*)\((.*)\)(?: -> (.*))?$")
# pybind11 names what it accepts; this project's callers give the plain type. A generic
# type without arguments is refused by strict type checkers.
PLAIN_TYPES = {
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "typing.SupportsFloat | typing.SupportsIndex": "float",
}
OPEN_TYPES = {
    "dict": "dict[typing.Any, typing.Any]",
    "list": "list[typing.Any]",
    "set": "set[typing.Any]",
    "tuple": "tuple[typing.Any, ...]",
    "collections.abc.Callable": "collections.abc.Callable[..., typing.Any]",
}
# Present on every class, or without meaning for a type checker.
SKIPPED = {
    "__class__",
    "__dict__",
    "__doc__",
    "__getstate__",
    "__module__",
    "__new__",
    "__qualname__",
    "__setstate__",
    "__static_attributes__",
    "__weakref__",
    "_pybind11_conduit_v1_",
}


class Writer:
    """Collects the text of the stub and the modules that it must import.

    Args:
        module: the extension module, e.g. ``torchtitan_cpp._C``.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.prefix = module.__name__ + "."
        self.imports: set[str] = set()

    def text(self) -> str:
        """The whole stub.

        Raises:
            TypeError: for a signature that is not Python.
        """
        body = "\n".join(self.namespace(self.module, ""))
        imports = [f"import {name}" for name in sorted(self.imports)]
        return "\n".join([HEADER, "", *imports, body, ""])

    def namespace(self, module: ModuleType, indent: str) -> Iterator[str]:
        """Members of a module, sorted by kind and name."""
        members = {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("__")
        }

        def kind(name: str) -> tuple[int, str]:
            value = members[name]
            rank = 0 if inspect.isclass(value) else 2 if callable(value) else 1
            return (3 if inspect.ismodule(value) else rank, name)

        for name in sorted(members, key=kind):
            value = members[name]
            if inspect.ismodule(value):
                if value.__name__ != f"{module.__name__}.{name}":
                    continue  # a module of somebody else
                yield ""
                yield f"{indent}class {name}:"
                yield from self.docstring(value.__doc__, indent + INDENT)
                content = list(self.namespace(value, indent + INDENT))
                yield from content or [f"{indent}{INDENT}..."]
            elif inspect.isclass(value):
                yield ""
                yield from self.cls(name, value, indent)
            elif callable(value):
                static = "@staticmethod" if indent else ""
                yield from self.function(name, value, indent, decorator=static)
            else:
                yield f"{indent}{name}: {self.annotation(self.name_of(type(value)))}"

    def cls(self, name: str, value: type, indent: str) -> Iterator[str]:
        """One class: members in the order of their definition."""
        bases = [
            self.annotation(self.name_of(base))
            for base in value.__bases__
            if base is not object and base.__name__ != "pybind11_object"
        ]
        inherits = f"({', '.join(bases)})" if bases else ""
        yield f"{indent}class {name}{inherits}:"
        indent += INDENT
        lines = list(self.docstring(value.__doc__, indent))
        if issubclass(value, enum.Enum):
            lines += [f"{indent}{item.name} = {item.value!r}" for item in value]
        else:
            for member, content in vars(value).items():
                if member not in SKIPPED:
                    lines += self.member(value, member, content, indent)
        yield from lines or [f"{indent}..."]

    def member(self, cls: type, name: str, value: Any, indent: str) -> Iterator[str]:
        if name == "__hash__" and value is None:
            yield f"{indent}__hash__ = None  # type: ignore[assignment]"
        elif name in ("__entries", "__members__"):
            if name == "__members__":
                kind = self.annotation(self.name_of(cls))
                yield f"{indent}__members__: dict[str, {kind}]"
        elif isinstance(value, property):
            getter = self.signatures(value.fget)
            kind = getter[0][1].rpartition(" -> ")[2] if getter else "object"
            yield f"{indent}@property"
            doc = "" if SIGNATURE.match(value.__doc__ or "") else value.__doc__
            yield from self.define(f"{name}(self) -> {kind}", doc, indent)
            if value.fset is not None:
                yield f"{indent}@{name}.setter"
                yield f"{indent}def {name}(self, value: {kind}) -> None: ..."
        elif isinstance(value, staticmethod):
            yield from self.function(
                name, value.__func__, indent, decorator="@staticmethod"
            )
        elif inspect.isclass(value):
            yield from self.cls(name, value, indent)
        elif callable(value):
            if SIGNATURE.match((value.__doc__ or "").split("\n")[0]):
                yield from self.function(name, value, indent)
        elif isinstance(value, cls):
            yield f"{indent}{name}: {self.annotation(self.name_of(cls))}"

    def function(
        self, name: str, value: Any, indent: str, *, decorator: str = ""
    ) -> Iterator[str]:
        signatures = self.signatures(value)
        if not signatures:
            raise TypeError(f"{self.prefix}{name} has no signature: {value.__doc__!r}")
        if len(signatures) > 1:
            self.imports.add("typing")
        for doc, signature in signatures:
            if len(signatures) > 1:
                yield f"{indent}@typing.overload"
            if decorator:
                yield f"{indent}{decorator}"
            yield from self.define(name + signature, doc, indent)

    def signatures(self, value: Any) -> list[tuple[str, str]]:
        """Docstring and ``(parameters) -> type`` of each overload."""
        lines = (getattr(value, "__doc__", None) or "").split("\n")
        overloaded = len(lines) > 1 and lines[1] == "Overloaded function."
        found: list[tuple[str, str]] = []
        for number, line in enumerate(lines):
            match = SIGNATURE.match(line)
            starts = line[:1].isdigit() if overloaded else number == 0
            if match and starts:
                found.append(("", self.signature(*match.groups())))
            elif found:
                doc, signature = found[-1]
                found[-1] = (doc + line + "\n", signature)
        return [(doc.strip("\n"), signature) for doc, signature in found]

    def signature(self, name: str, parameters: str, result: str | None) -> str:
        """A signature of pybind11 in the words of this stub."""
        # A default that has no literal is printed as <repr>.
        source = re.sub(r"= <[^<>]*>", "= ...", parameters)
        try:
            tree = ast.parse(f"def f({source}) -> {result or 'None'}: ...").body[0]
        except SyntaxError as error:
            raise TypeError(
                f"{name}({parameters}) -> {result} is not a signature of Python; is a "
                "type bound after its first use?"
            ) from error
        assert isinstance(tree, ast.FunctionDef)
        arguments = tree.args
        given = [*arguments.posonlyargs, *arguments.args]
        if given and given[0].arg == "self":
            given[0].annotation = None
        for argument in given:
            if name in ("__eq__", "__ne__") and argument.arg != "self":
                argument.annotation = ast.Name("object")
        unnamed = sum(bool(re.match(r"self$|arg\d+$", item.arg)) for item in given)
        if any(item.arg.startswith("arg") for item in given[:unnamed]):
            arguments.posonlyargs, arguments.args = given[:unnamed], given[unnamed:]
        for item in [*given, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]:
            if item is not None and item.annotation is not None:
                item.annotation = self.expression(item.annotation)
        assert tree.returns is not None
        returns = ast.unparse(self.expression(tree.returns))
        return f"({ast.unparse(arguments)}) -> {returns}"

    def annotation(self, text: str) -> str:
        return ast.unparse(self.expression(ast.parse(text, mode="eval").body))

    def expression(self, tree: ast.expr) -> ast.expr:
        """The type without the name of this module; notes what must be imported."""
        text = ast.unparse(tree).replace(self.prefix, "")
        for accepted, plain in PLAIN_TYPES.items():
            text = text.replace(accepted, plain)
        for bare, generic in OPEN_TYPES.items():
            text = re.sub(rf"(?<![\w.]){re.escape(bare)}(?![\w.\[])", generic, text)
        for dotted in re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", text):
            if not hasattr(self.module, dotted.split(".")[0]):
                self.imports.add(self.module_of(dotted))
        return ast.parse(text, mode="eval").body

    def module_of(self, dotted: str) -> str:
        """The longest part of a dotted name that is a module."""
        name = dotted
        while "." in name:
            name = name.rpartition(".")[0]
            try:
                importlib.import_module(name)
            except ImportError:
                continue
            return name
        raise TypeError(f"{dotted} is neither in {self.module.__name__} nor a module")

    def name_of(self, cls: type) -> str:
        if cls.__module__ == "builtins":
            return cls.__qualname__
        return f"{cls.__module__}.{cls.__qualname__}"

    def docstring(self, doc: str | None, indent: str) -> Iterator[str]:
        doc = textwrap.dedent(doc or "").strip().replace("\\", "\\\\")
        if doc:
            lines = f'"""{doc}"""'.split("\n")
            yield from ((indent + line).rstrip() for line in lines)

    def define(self, head: str, doc: str | None, indent: str) -> Iterator[str]:
        lines = list(self.docstring(doc, indent + INDENT))
        yield f"{indent}def {head}:" + ("" if lines else " ...")
        yield from lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check: bool = parser.parse_args().check
    importlib.import_module("torch")
    text = Writer(importlib.import_module("torchtitan_cpp._C")).text()
    if check:
        if STUB.is_file() and STUB.read_text() == text:
            return 0
        print(f"{STUB} is out of date; run: python scripts/generate_stub.py")
        return 1
    STUB.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
