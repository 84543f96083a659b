"""Which errors are printed without a traceback."""

from __future__ import annotations

from torchtitan_cpp.checkpoint.agreement import CheckpointError
from torchtitan_cpp.errors import MissingPathError, needs_traceback


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_an_error_that_explains_itself_needs_no_traceback() -> None:
    assert not needs_traceback(MissingPathError("no such file: x"))
    assert not needs_traceback(caused(CheckpointError("x"), CheckpointError("y")))
    assert not needs_traceback(caused(CheckpointError("x"), OSError("disk full")))


def test_an_error_of_unknown_code_needs_one_even_as_a_cause() -> None:
    assert needs_traceback(RuntimeError("shapes differ"))
    assert needs_traceback(FileNotFoundError("opened by a dataset of one's own"))
    assert needs_traceback(caused(CheckpointError("x"), RuntimeError("shapes differ")))
