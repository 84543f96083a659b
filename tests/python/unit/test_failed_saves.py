"""How many saves in a row may fail, those in the background included."""

from __future__ import annotations

import pytest

from torchtitan_cpp.checkpoint import CheckpointError
from torchtitan_cpp.checkpoint.failed_saves import FailedSaves


def fail(saves: FailedSaves, *, final: bool = False) -> None:
    with saves.counted(final=final):
        raise CheckpointError("disk full")


def test_saves_may_fail_in_a_row_until_one_is_durable() -> None:
    saves = FailedSaves(2)
    for _ in range(3):
        fail(saves)
        fail(saves)
        with saves.counted(final=False):
            pass
    fail(saves)
    fail(saves)
    with pytest.raises(CheckpointError, match="disk full"):
        fail(saves)


def test_a_save_that_is_only_begun_forgives_nothing() -> None:
    saves = FailedSaves(1)
    fail(saves)
    with saves.counted(final=False, is_durable=lambda: False):
        pass
    with pytest.raises(CheckpointError):
        fail(saves)


def test_the_last_save_may_not_fail() -> None:
    with pytest.raises(CheckpointError):
        fail(FailedSaves(5), final=True)


def test_another_error_is_none_of_a_save() -> None:
    saves = FailedSaves(5)
    with pytest.raises(RuntimeError, match="lost"), saves.counted(final=False):
        raise RuntimeError("a rank is lost")
