"""The TOML reader against Python's own."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from torchtitan_cpp import _C

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
CHARACTERS = b"[]{}=\"'.,#\n \\_0x1e+-T:"


def texts() -> list[bytes]:
    """The corpus of the fuzzer, configurations, and changed pieces of both."""
    folders = [ROOT / "tests/fuzz/corpus/toml", ROOT / "configs/llama3"]
    whole = [path.read_bytes() for f in folders for path in sorted(f.iterdir())]
    rng = random.Random(3)
    changed = []
    for _ in range(8000):
        text = rng.choice(whole)
        start = rng.randrange(max(1, len(text) - 200))
        data = bytearray(text[start : start + 200])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data) + 1)
            kind = rng.randrange(3)
            if kind == 0 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[at : at + 1]
            else:
                data.insert(at, rng.choice(CHARACTERS))
        changed.append(bytes(data))
    return whole + changed


def accepts_python(text: bytes) -> bool:
    try:
        tomllib.loads(text.decode())
    except (ValueError, RecursionError):
        return False
    return True


def accepts_ours(text: bytes) -> bool:
    try:
        _C.config.parse_toml(text, source="x")
    except ValueError:
        return False
    return True


def test_what_python_refuses_is_never_accepted() -> None:
    both = neither = python_only = 0
    for text in texts():
        python, ours = accepts_python(text), accepts_ours(text)
        assert python or not ours, text
        both += ours
        neither += not python
        python_only += python and not ours  # numbers that 64 bits do not hold
    assert both > 500 and neither > 500 and python_only < 0.2 * both
