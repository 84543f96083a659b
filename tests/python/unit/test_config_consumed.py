"""Nothing is accepted and ignored: every field is read, or its feature is refused."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

import torchtitan_cpp
from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.config.schema import schema_of
from torchtitan_cpp.config.supported import NOT_SUPPORTED_YET, WITHOUT_EFFECT_UNLESS

PACKAGE = Path(torchtitan_cpp.__file__).parent

# Read while the configuration itself is loaded.
READ_BY_LOADING = {
    "job.config_file",
    "job.custom_config_module",
    "experimental.custom_args_module",
    "model.tokenizer_path",
}
# What these ask for is always so, and leaving it out would change no result: a
# recomputation draws the same numbers (they are counted, not drawn in a row), and
# workers are threads that live as long as the run.
ALWAYS_SO = {
    "activation_checkpoint.preserve_rng_state",
    "training.dataloader.persistent_workers",
    "validation.dataloader.persistent_workers",
}
WHOLLY_MISSING = {row.field for row in NOT_SUPPORTED_YET} - {
    "activation_checkpoint.mode",
    "activation_checkpoint.selective_ac_option",
    "comm.mode",
    "model.flavor",
}


def to_be_read() -> list[str]:
    known = READ_BY_LOADING | ALWAYS_SO | WHOLLY_MISSING
    return [
        name
        for name in schema_of(JobConfig).fields
        if name not in known
        and not any(fnmatch.fnmatch(name, p) for p in WITHOUT_EFFECT_UNLESS)
    ]


def sources() -> str:
    files = [p for p in PACKAGE.rglob("*.py") if PACKAGE / "config" not in p.parents]
    return "\n".join(path.read_text() for path in files)


@pytest.mark.parametrize("name", to_be_read())
def test_every_field_is_read_somewhere(name):
    leaf = name.rpartition(".")[2]
    through_config = name.startswith("training.mixed_precision_")
    reader = "compute_dtype|reduce_dtype" if through_config else rf"\.{leaf}"
    assert re.search(rf"(?:{reader})\b", sources()), f"{name} is accepted and ignored"
