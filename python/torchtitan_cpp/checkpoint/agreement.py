"""Ranks that succeed together or fail together with one text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TypeVar

from torchtitan_cpp.checkpoint.state import Json, Ranks
from torchtitan_cpp.errors import Explained, UnusablePathError

Value = TypeVar("Value", bound=Json)


class CheckpointError(Explained, RuntimeError):
    """A checkpoint was not saved or not loaded; the same text on all ranks."""


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
    errors = {
        rank: str(reply["error"])
        for rank, reply in enumerate(answers)
        if "error" in reply
    }
    if errors:
        raise CheckpointError(f"{what}: {_together(errors, len(answers))}") from cause
    return [reply["value"] for reply in answers]


def _together(errors: Mapping[int, str], num_ranks: int) -> str:
    if len(errors) == num_ranks and len(set(errors.values())) == 1:
        return errors[0]
    shown = [f"rank {rank}: {error}" for rank, error in list(errors.items())[:3]]
    more = f"; and {len(errors) - 3} more ranks" if len(errors) > 3 else ""
    return "; ".join(shown) + more


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
