"""Nothing is accepted and ignored: every field is read, or its feature is refused."""

from __future__ import annotations

import fnmatch
import re
from functools import cache
from pathlib import Path

import pytest
from attribute_reads import Reads, attribute_reads, plain

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
THROUGH_CONFIG = {
    "mixed_precision_param": "compute_dtype",
    "mixed_precision_reduce": "reduce_dtype",
}
"""Fields that the configuration reads for others, and by which function."""
WHOLLY_MISSING = {row.field for row in NOT_SUPPORTED_YET} - {
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


@cache
def reads() -> Reads:
    """By the code outside of the configuration's own package."""
    files = [p for p in PACKAGE.rglob("*.py") if PACKAGE / "config" not in p.parents]
    found: Reads = set()
    return found.union(*(attribute_reads(path.read_text()) for path in files))


@pytest.mark.parametrize("name", to_be_read())
def test_every_field_is_read_somewhere(name):
    section, leaf = name.split(".")[-2:]
    if name.startswith("training.mixed_precision_"):
        text = "".join(path.read_text() for path in PACKAGE.glob("*.py"))
        assert re.search(rf"\b{THROUGH_CONFIG[leaf]}\(", text), name
    else:
        assert (plain(section), leaf) in reads(), f"{name} is accepted and ignored"


def test_a_read_counts_for_the_section_it_is_of():
    source = """
def build(config, optimizer_config, schedule: LRSchedulerSection):
    debug, section = config.debug, config.validation
    optimizer_config.eps, schedule.total_steps, config.job.folder, debug.seed
    helper(section)

def helper(given, name="x"):
    given.steps
    given.freq = 3

class Held:
    def __init__(self, given):
        self._settings = given.checkpoint

    def use(self):
        return self._settings.interval
"""
    found = attribute_reads(source)
    assert found >= {
        ("optimizer", "eps"),
        ("lrscheduler", "total_steps"),
        ("job", "folder"),
        ("debug", "seed"),
        ("validation", "steps"),
        ("checkpoint", "interval"),
    }
    assert not found & {("debug", "steps"), ("job", "seed"), ("validation", "freq")}
