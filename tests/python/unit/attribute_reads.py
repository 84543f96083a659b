"""Which attributes of which values some Python source reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

Reads = set[tuple[str, str]]
"""Pairs of the name of a value and the attribute read of it."""


def attribute_reads(source: str) -> Reads:
    """Attributes by every name that the value is known under in this file.

    ``training = config.training; training.steps`` reads ``steps`` of ``training``, and
    so does ``f(config.training)`` with ``def f(section): section.steps``. A parameter
    whose annotated class is named after a section (``LRSchedulerSection``) is one, and
    one named ``optimizer_config`` is the section ``optimizer``. Names are compared
    without underscores and in lower case.
    """
    tree = ast.parse(source)
    names = _Names(tree)
    reads = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            reads |= {(name, node.attr) for name in names.of(node.value)}
    return reads


def plain(name: str) -> str:
    """A name as it is compared."""
    shortened = re.sub(r"_config$|Section$|Config$", "", name)
    return shortened.replace("_", "").lower()


class _Names:
    """Under which names the values of a file go."""

    def __init__(self, tree: ast.AST) -> None:
        self._same: dict[str, set[str]] = {}
        functions = {
            node.name: node.args
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
        }
        for arguments in functions.values():
            for each in (*arguments.args, *arguments.kwonlyargs):
                if isinstance(each.annotation, ast.Name):
                    self._add(each.arg, {plain(each.annotation.id)})
        before = -1
        while before != (before := sum(map(len, self._same.values()))):
            for node in ast.walk(tree):
                for name, value in _bindings(node, functions):
                    self._add(name, self.of(value))

    def of(self, value: ast.expr) -> set[str]:
        """Names of a variable or attribute; none for other expressions."""
        if isinstance(value, ast.Attribute):
            name = value.attr
        elif isinstance(value, ast.Name):
            name = value.id
        else:
            return set()
        return {plain(name)} | self._same.get(plain(name), set())

    def _add(self, name: str, others: set[str]) -> None:
        self._same.setdefault(plain(name), set()).update(others)


def _bindings(
    node: ast.AST, functions: dict[str, ast.arguments]
) -> Iterator[tuple[str, ast.expr]]:
    """Names that a node gives to values."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _assigned(target, node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        arguments = functions.get(node.func.id)
        if arguments is not None:
            for parameter, value in zip(arguments.args, node.args, strict=False):
                yield parameter.arg, value


def _assigned(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for each, part in zip(target.elts, value.elts, strict=True):
            yield from _assigned(each, part)
    elif isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Attribute):
        yield target.attr, value
