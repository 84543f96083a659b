#!/usr/bin/env python3
"""Checks the layers of ``csrc/`` against the table in ``csrc/layers.toml``.

* A source includes its own folder and folders of rows below, never a neighbour.
* Rows with ``torch = false`` include no LibTorch; only ``bindings`` includes Python.
* Every folder with sources is in the table and in ``csrc/CMakeLists.txt``, whose DEPS
  name rows below and reach every folder that is included.
* Every folder of ``tests/cpp`` mirrors one of the table, else its tests never run.
* No file is longer than 400 lines (a CUDA kernel: 600).

Usage: ``scripts/check_layers.py [root]``. Prints ``file:line: message`` for each
violation and exits with 1 if there is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_LINES = 400
MAX_LINES_CUDA = 600
CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
CHECKED_LENGTHS = {
    "csrc": CPP_SUFFIXES,
    "tests": {*CPP_SUFFIXES, ".py"},
    "python": {".py"},
    "scripts": {".py", ".sh"},
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|caffe2)/")
PYTHON_HEADER = re.compile(
    r"^(Python\.h|pybind11/.*|torch/(extension|python)\.h"
    r"|torch/csrc/utils/(pybind|python_\w+)\.h|torch/csrc/(\w+/)*python_\w+\.h"
    r"|torch/csrc/(THP|DynamicTypes|Exceptions)\.h)$"
)
# Each costs 20 to 40 seconds a source; single headers below ATen/ops replace them.
SLOW_HEADERS = {"torch/torch.h", "torch/extension.h", "ATen/ATen.h", "ATen/Functions.h"}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder of ``csrc/``: its row (0 is the lowest) and what the row may include."""

    name: str
    row: int
    torch: bool


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A ``torchtitan_layer(...)`` call of ``csrc/CMakeLists.txt``."""

    line: int
    torch: bool
    deps: tuple[str, ...]


def read_table(root: Path) -> dict[str, Folder]:
    """Folders of ``csrc/layers.toml`` by name.

    Raises:
        ValueError: if a folder is listed twice, or a row without LibTorch stands above
            one with it.
    """
    with (root / "csrc" / "layers.toml").open("rb") as file:
        rows = tomllib.load(file)["row"]
    folders: dict[str, Folder] = {}
    torch_below = False
    for row, entry in enumerate(reversed(rows)):
        torch = bool(entry.get("torch", True))
        if torch_below and not torch:
            raise ValueError(
                f"csrc/layers.toml: row {entry['folders']} is without torch, but a "
                "row below it has torch"
            )
        torch_below = torch_below or torch
        for name in entry["folders"]:
            if name in folders:
                raise ValueError(f"csrc/layers.toml: folder {name!r} is listed twice")
            folders[name] = Folder(name=name, row=row, torch=torch)
    return folders


def read_cmake(root: Path) -> dict[str, Layer]:
    """The ``torchtitan_layer`` calls of ``csrc/CMakeLists.txt`` by folder."""
    text = (root / "csrc" / "CMakeLists.txt").read_text()
    text = re.sub(r"#.*", "", text)
    layers: dict[str, Layer] = {}
    for call in re.finditer(r"torchtitan_layer\(([^)]*)\)", text):
        name, *words = call.group(1).split()
        deps: list[str] = []
        keyword = ""
        for word in words:
            if word in ("NO_TORCH", "DEPS", "LIBRARIES"):
                keyword = word
            elif keyword == "DEPS":
                deps.append(word)
        line = text.count("\n", 0, call.start()) + 1
        layers[name] = Layer(line=line, torch="NO_TORCH" not in words, deps=tuple(deps))
    return layers


def reachable(layers: dict[str, Layer], name: str) -> set[str]:
    """Folders that ``name`` links, directly or through others."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        layer = layers.get(waiting.pop())
        new = set(layer.deps if layer else ()) - found
        found |= new
        waiting.extend(new)
    return found


def sources(folder: Path, suffixes: set[str]) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in suffixes and path.is_file() and not path.is_symlink():
            yield path


def check_include(
    root: Path, source: Path, header: str, quoted: bool, folders: dict[str, Folder]
) -> Iterator[str]:
    """Violations of one ``#include`` of a source whose folder is in the table."""
    own = folders[source.parent.relative_to(root / "csrc").as_posix()]
    if not (root / "csrc" / header).is_file():
        if quoted:
            yield f'"{header}" is not a file of csrc/; use <> for other libraries'
        if TORCH_HEADER.match(header) and (not own.torch or source.suffix == ".cu"):
            who = "a .cu file" if own.torch else own.name
            yield f"{who} may not include LibTorch, found <{header}>"
        if PYTHON_HEADER.match(header) and own.name != "bindings":
            yield f"only bindings may include Python, found <{header}>"
        if header in SLOW_HEADERS:
            yield f"<{header}> makes every build slow; include single headers"
        return
    other = folders.get(Path(header).parent.as_posix())
    if other is None or other == own:
        return
    if other.row == own.row:
        yield f"{own.name} may not include its neighbour {other.name}: {header}"
    elif other.row > own.row:
        yield f"{own.name} may not include {other.name}, a row above it: {header}"


def check_sources(
    root: Path, folders: dict[str, Folder], layers: dict[str, Layer]
) -> Iterator[str]:
    csrc = root / "csrc"
    links = {name: reachable(layers, name) | {name} for name in layers}
    for source in sources(csrc, CPP_SUFFIXES):
        folder = source.parent.relative_to(csrc).as_posix()
        where = source.relative_to(root)
        if folder not in folders:
            yield f"{where}:1: folder {folder!r} is not in csrc/layers.toml"
            continue
        for number, line in enumerate(source.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            quoted, header = match.group(1) == '"', match.group(2)
            for message in check_include(root, source, header, quoted, folders):
                yield f"{where}:{number}: {message}"
            target = Path(header).parent.as_posix()
            if (csrc / header).is_file() and target not in links.get(folder, {target}):
                yield (
                    f"{where}:{number}: csrc/CMakeLists.txt links {folder} without "
                    f"{target}, which it includes"
                )


def check_cmake(
    root: Path, folders: dict[str, Folder], layers: dict[str, Layer]
) -> Iterator[str]:
    where = "csrc/CMakeLists.txt"
    for name in folders.keys() - layers.keys() - {"bindings"}:
        yield f"{where}:1: torchtitan_layer({name} ...) is missing"
    for name, layer in layers.items():
        if name not in folders:
            yield f"{where}:{layer.line}: {name!r} is not in csrc/layers.toml"
            continue
        if layer.torch != folders[name].torch:
            yield f"{where}:{layer.line}: {name}: NO_TORCH contradicts csrc/layers.toml"
        for dep in layer.deps:
            if dep not in folders or folders[dep].row >= folders[name].row:
                yield f"{where}:{layer.line}: {name}: DEPS {dep} is not on a row below"


def check_tests(root: Path, folders: dict[str, Folder]) -> Iterator[str]:
    tests = root / "tests" / "cpp"
    for source in sources(tests, {".cpp"}):
        folder = source.parent.relative_to(tests).as_posix()
        where = source.relative_to(root)
        if folder not in folders:
            yield f"{where}:1: tests mirror csrc/, but {folder!r} is no folder of it"
        elif (
            not source.stem.endswith("_test") and not source.with_suffix(".h").exists()
        ):
            yield (
                f"{where}:1: expected a name that ends in _test.cpp, or a header "
                "of the same name that tests share"
            )


def check_lengths(root: Path) -> Iterator[str]:
    for top, suffixes in CHECKED_LENGTHS.items():
        for source in sources(root / top, suffixes):
            limit = MAX_LINES_CUDA if source.suffix == ".cu" else MAX_LINES
            length = len(source.read_text().splitlines())
            if length > limit:
                where = source.relative_to(root)
                yield f"{where}:{limit + 1}: {length} lines, the limit is {limit}"


def check(root: Path) -> list[str]:
    """All violations under ``root``, as ``file:line: message``."""
    try:
        folders = read_table(root)
    except ValueError as error:
        return [str(error)]
    layers = read_cmake(root)
    return [
        *check_sources(root, folders, layers),
        *check_cmake(root, folders, layers),
        *check_tests(root, folders),
        *check_lengths(root),
    ]


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    violations = check(root.resolve())
    print("\n".join(violations), end="\n" if violations else "")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
