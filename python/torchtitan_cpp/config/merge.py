"""Adds the fields and sections of a user's JobConfig to ours (custom_config_module)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import MISSING, field, is_dataclass, make_dataclass
from typing import Any

from torchtitan_cpp.config.schema import MERGED_FROM, typed_fields


def merge_module(base: type, module: str) -> type:
    """Merge ``JobConfig`` of the importable ``module`` into ``base``.

    Raises:
        ValueError: if the module cannot be imported or has no such dataclass.
    """
    try:
        custom = importlib.import_module(module).JobConfig
    except Exception as error:  # a module of the user's may fail in any way
        raise ValueError(
            f"cannot import JobConfig from {module!r} ({type(error).__name__}: {error})"
        ) from error
    if not (isinstance(custom, type) and is_dataclass(custom)):
        raise ValueError(f"{module}.JobConfig is no dataclass")
    return merge(base, custom)


def merge(base: type, custom: type) -> type:
    """A subclass of dataclass ``base`` with the fields of ``custom`` as well.

    A field of both is merged recursively if both are dataclasses; else that of
    ``custom`` wins, type and default. The ``__post_init__`` of both run.
    """
    if base is custom:
        return base
    kinds = {entry.name: (entry, kind) for entry, kind in typed_fields(base)}
    for entry, kind in typed_fields(custom):
        known = kinds.get(entry.name)
        if known and _is_section(known[1]) and _is_section(kind):
            merged = merge(known[1], kind)
            kinds[entry.name] = (field(default_factory=merged), merged)
        else:
            kinds[entry.name] = (entry, kind)
    checks: list[Callable[[Any], None]] = []
    for origin in (base, custom):
        check = getattr(origin, "__post_init__", None)
        if check is not None and check not in checks:
            checks.append(check)

    def run_checks(self: Any) -> None:
        for check in checks:
            check(self)

    namespace: dict[str, Any] = {MERGED_FROM: (base, custom)}
    if checks:
        namespace["__post_init__"] = run_checks
    return make_dataclass(
        f"Merged{base.__name__}",
        [(name, kind, _copied(entry)) for name, (entry, kind) in kinds.items()],
        bases=(base,),
        namespace=namespace,
        frozen=True,
        kw_only=True,
    )


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def _copied(entry: Any) -> Any:
    # make_dataclass writes into the Field that it is given: never into another class's.
    if entry.default_factory is not MISSING:
        return field(default_factory=entry.default_factory)
    return field() if entry.default is MISSING else field(default=entry.default)
