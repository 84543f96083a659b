"""The text of ``--help``: every field with its type, default and documentation."""

from __future__ import annotations

import json
from dataclasses import MISSING

from torchtitan_cpp.config.schema import Schema, documentation
from torchtitan_cpp.config.values import expected, is_boolean

_HEAD = """\
Flags override the TOML file given by --job.config_file, which overrides the defaults
below. Without a file the packaged debug configuration is read.

  --section.field value    or --section.field=value; '_' and '-' mean the same
  --section.field a,b,c    lists are comma-separated, '' is the empty list
  --section.field          booleans; --section.no-field or --section.field=false: not
  --section.field None     no value, where a field may have none

A flag that is given twice has its last value. To see every value of a run, where it
was given and what is not supported yet: python -m torchtitan_cpp.config [flags]
"""


def help_text(schema: Schema) -> str:
    """All fields of ``schema``, section by section."""
    lines = [_HEAD]
    docs = documentation(schema)
    section = ""
    for name, field in schema.fields.items():
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            title = (schema.sections[section].__doc__ or "").strip().splitlines()
            # A dataclass without a docstring gets its signature for one.
            known = title and not title[0].startswith(
                f"{_class_name(schema, section)}("
            )
            lines += ["", f"[{section}]  {title[0] if known else ''}".rstrip()]
        kind = "flag" if is_boolean(field.kind) else expected(field.kind)
        default = "required" if field.default is MISSING else printed(field.default)
        lines.append(f"  --{name}  ({kind}; default {default})")
        if name in docs:
            lines.append(f"      {docs[name]}")
    return "\n".join(lines)


def printed(value: object) -> str:
    """A value as it may be written in a TOML file; None, which TOML lacks, as None."""
    if value is None:
        return "None"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _class_name(schema: Schema, section: str) -> str:
    return schema.sections[section].__name__
