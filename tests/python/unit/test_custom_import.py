"""A module of the user's that cannot be imported, told with all other problems."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchtitan_cpp.config import ConfigError, read_config
from torchtitan_cpp.custom_import import import_custom_code


def refused(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        import_custom_code(read_config(flags))
    return str(caught.value)


def test_a_missing_module_is_told_with_the_other_problems() -> None:
    text = refused(
        "--experimental.custom_import=no_such_module",
        "--training.stepz=1",
        "--checkpoint.enable",
        "--checkpoint.create_seed_checkpoint",
        "--checkpoint.load_only",
    )
    assert text.startswith("3 problems in the configuration:")
    assert (
        "flag --experimental.custom_import: experimental.custom_import: "
        "'no_such_module' does not import: No module named 'no_such_module'\n" in text
    )
    assert "training.stepz" in text
    assert "contradicts checkpoint.load_only" in text


def test_a_mistake_in_it_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_import.py").write_text("\nint('x')\n")
    text = refused("--experimental.custom_import=broken_import")
    assert f"base 10: 'x' ({tmp_path}/broken_import.py:2)" in text
    (tmp_path / "refused_import.py").write_text(
        "from torchtitan_cpp import get_train_spec, register_train_spec\n"
        "register_train_spec('twice', get_train_spec('llama3'))\n"
        "register_train_spec('twice', get_train_spec('llama3'))\n"
    )
    text = refused("--experimental.custom_import=refused_import")
    assert "'twice' is already registered" in text
    assert f"({tmp_path}/refused_import.py:3)" in text
