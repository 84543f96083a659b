"""Every value of a run, where it was given, and what would keep it from starting."""

from __future__ import annotations

from torchtitan_cpp.config.check import contradictions, unsupported
from torchtitan_cpp.config.help import printed
from torchtitan_cpp.config.load import Loaded
from torchtitan_cpp.config.paths import unusable_paths
from torchtitan_cpp.config.schema import schema_of


def explain(loaded: Loaded) -> str:
    """A page for a person: values with their origins, then what is wrong."""
    lines: list[str] = []
    schema = schema_of(type(loaded.config))
    section = None
    for name in schema.fields:
        head, _, leaf = name.rpartition(".")
        if head != section:
            section = head
            lines += ["", f"[{section}]"]
        value = f"{leaf} = {printed(loaded.value(name))}"
        lines.append(f"{value:<44}  # {loaded.origin(name)}")
    for title, found in (
        ("Notes", loaded.notes),
        ("Missing files and unusable folders", unusable_paths(loaded)),
        ("Not supported yet", unsupported(loaded)),
        ("Problems", [*loaded.problems, *contradictions(loaded)]),
    ):
        if found:
            lines += ["", f"{title}:", *(f"  {entry}" for entry in found)]
    return "\n".join(lines).lstrip("\n")
