"""Ranks that succeed together or fail together with one text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torchtitan_cpp.checkpoint.state import Json, Ranks
from torchtitan_cpp.errors import Explained, UnusablePathError

Value = TypeVar("Value", bound=Json)


class CheckpointError(Explained, RuntimeError):
    """A checkpoint was not saved or not loaded; the same text on all ranks."""


class UnreadableError(Explained, RuntimeError):
    """Reading a checkpoint failed; the same text on all ranks."""


def to_json(value: Json, *, where: str) -> str:
    """JSON text of ``value``; ValueError names ``where`` for what JSON cannot hold."""
    try:
        _check_keys(value)
        return json.dumps(value, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: cannot be saved as JSON: {error}") from error


def _check_keys(value: Json) -> None:
    """JSON would turn keys that are numbers into texts, without a word."""
    if isinstance(value, Mapping):
        for key, held in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is no text")
            _check_keys(held)
    elif isinstance(value, (list, tuple)):
        for held in value:
            _check_keys(held)


def all_agree(ranks: Ranks, what: str, action: Callable[[], Value]) -> list[Value]:
    """Run ``action`` on every rank and return all results, in rank order.

    Collective. Results travel as JSON.

    Raises:
        CheckpointError: on all ranks, if any rank's action raised, with the errors of
            the ranks that failed (at most three; one, where all say the same).
    """
    cause: Exception | None = None
    try:
        answer = to_json({"value": action()}, where=what)
    except Exception as error:
        cause = error
        answer = json.dumps({"error": str(error) or type(error).__name__})
    answers = [json.loads(data) for data in ranks.all_gather_bytes(answer.encode())]
    errors = [str(reply["error"]) if "error" in reply else None for reply in answers]
    if any(errors):
        raise CheckpointError(f"{what}: {together(errors)}") from cause
    return [reply["value"] for reply in answers]


def together(errors: Sequence[str | None]) -> str:
    """One text of the errors of all ranks, of which some have none."""
    if len(set(errors)) == 1:
        return str(errors[0])
    told = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error]
    more = f"; and {len(told) - 3} more ranks" if len(told) > 3 else ""
    return "; ".join(told[:3]) + more


def all_read(ranks: Ranks, what: str, read: Callable[[], Value]) -> list[Value]:
    """The same for what reads files.

    Raises:
        UnreadableError: on all ranks, if any rank's ``read`` raised.
    """
    try:
        return all_agree(ranks, what, read)
    except CheckpointError as error:
        raise UnreadableError(str(error)) from error.__cause__


def all_valid(ranks: Ranks, what: str, check: Callable[[], None]) -> None:
    """Run a check of what the user gave on every rank. Collective.

    Raises:
        UnusablePathError: on all ranks, if any rank's check raised, as in
            ``all_agree``.
    """
    try:
        all_agree(ranks, what, check)
    except CheckpointError as error:
        raise UnusablePathError(str(error)) from error


def on_first_rank(ranks: Ranks, what: str, action: Callable[[], Value]) -> Value:
    """Run ``action`` on rank 0 only; all ranks get its result or its error."""

    def act() -> Value | None:
        return action() if ranks.rank == 0 else None

    result: Value = all_agree(ranks, what, act)[0]  # type: ignore[assignment]  # rank 0
    return result
