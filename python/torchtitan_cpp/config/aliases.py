"""Names of older versions that still mean something."""

from __future__ import annotations

from torchtitan_cpp.config.problems import Origin, Problem, Values, did_you_mean

CONVERTERS = (
    "quantize.linear.float8",
    "quantize.linear.mx",
    "quantize.grouped_mm.float8",
    "quantize.grouped_mm.mx",
)
"""Names that model.converters may hold."""

_RENAMED_FIELDS = {
    "model.tokenizer_path": "model.hf_assets_path",
    "experimental.custom_args_module": "job.custom_config_module",
}
_RENAMED_CONVERTERS = {"float8": "quantize.linear.float8"}


def apply_aliases(values: Values) -> tuple[list[str], list[Problem]]:
    """Give ``values`` their present names and return what to tell about it.

    A deprecated field gives its value to the one that replaced it, unless that one was
    given with a higher precedence; given at the same place with another value is a
    problem.
    """
    notes: list[str] = []
    problems: list[Problem] = []
    for old, new in _RENAMED_FIELDS.items():
        if old not in values or not values[old][0]:
            continue
        value, origin = values[old]
        notes.append(f"{origin}: {old} is deprecated, use {new}")
        known = values.get(new)
        if known is None or known[1].precedence < origin.precedence:
            values[new] = (value, origin)
        elif known[1].precedence == origin.precedence and known[0] != value:
            message = f"contradicts {new} = {known[0]!r} ({known[1]})"
            problems.append(
                Problem(field=old, origin=origin, message=message, hint=f"use {new}")
            )
    if "model.converters" in values:
        values["model.converters"] = _present_converters(values, notes, problems)
    return notes, problems


def _present_converters(
    values: Values, notes: list[str], problems: list[Problem]
) -> tuple[list[str], Origin]:
    names, origin = values["model.converters"]
    present = [_RENAMED_CONVERTERS.get(name, name) for name in names]
    for name in names:
        if name in _RENAMED_CONVERTERS:
            now = _RENAMED_CONVERTERS[name]
            notes.append(f"{origin}: model.converters: {name!r} means {now!r}")
    for name in present:
        if name not in CONVERTERS:
            known = ", ".join(repr(converter) for converter in CONVERTERS)
            message = f"expected names among {known}, found {name!r}"
            hint = did_you_mean(name, CONVERTERS)
            problems.append(
                Problem(
                    field="model.converters", origin=origin, message=message, hint=hint
                )
            )
    return present, origin
