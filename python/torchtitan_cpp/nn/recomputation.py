"""What the graph of a call would have saved, found by running the call again.

As ``torch.utils.checkpoint`` without reentry: in the first run the graph notes only how
each tensor looked, in the second one they are collected in the same order. There
they are from the program's Recompute on, for any number of looks at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointError

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class RecomputeOptions:
    """How layers run again; the names are those of ``torch.utils.checkpoint``."""

    preserve_rng_state: bool = True
    """Draw the same random numbers."""
    determinism_check: str = "default"
    """"default": shape, dtype and device of what is saved must be the same."""
    early_stop: bool = False
    """End the second run as soon as all is there."""
    debug: bool = False
    """Note the operations of both runs for the error of a check."""
    make_contexts: Callable[[], Contexts] | None = None
    """Around the first and the second run; to keep results of the first."""


class _Stop(Exception):
    """All tensors are there."""


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Recomputation:
    """The saved tensors of one call of a layer."""

    def __init__(self, name: str, options: RecomputeOptions) -> None:
        self._name = name
        self._options = options
        self._looks: list[tuple[Any, ...]] = []
        self._tensors: list[torch.Tensor] = []
        self._is_there = False
        self._operations = [_Operations(), _Operations()]
        contexts = options.make_contexts() if options.make_contexts else None
        self._contexts: list[AbstractContextManager[Any]] = list(
            contexts or (nullcontext(), nullcontext())
        )

    @contextmanager
    def first_run(self) -> Iterator[None]:
        """Around the first run, in grad mode; its graph saves nothing."""

        def pack(tensor: torch.Tensor) -> int:
            self._looks.append(_look(tensor))
            return len(self._looks) - 1

        with self._surroundings(0), _hooks(pack, self._get):
            yield

    def second_run(self, run: Callable[[], object]) -> None:
        """Call ``run``, which does the same once more, and keep what it saves.

        Raises:
            CheckpointError: if it does not save the same.
        """

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            index = len(self._tensors)
            if index == len(self._looks):
                raise self._error("saves more tensors than the first time")
            if self._options.determinism_check != "none":
                found, expected = _look(tensor), self._looks[index]
                if found != expected:
                    raise self._error(
                        f"saves another tensor {index}: shape, dtype and device were "
                        f"{expected} and are {found}"
                    )
            # Without its graph: a result that its operation saves would keep itself.
            self._tensors.append(tensor.detach())
            if self._options.early_stop and len(self._tensors) == len(self._looks):
                raise _Stop
            return self._tensors[-1]

        try:
            with self._surroundings(1), _hooks(pack, lambda tensor: tensor):
                run()
        except _Stop:
            pass
        if len(self._tensors) < len(self._looks):
            raise self._error(
                f"saves {len(self._tensors)} tensors, {len(self._looks)} the first time"
            )
        self._is_there = True
        self._contexts.clear()

    def _get(self, index: int) -> torch.Tensor:
        if not self._is_there:
            raise CheckpointError(
                f"{self._name}: a tensor that is to be recomputed is needed before the "
                "backward reaches the layer"
            )
        return self._tensors[index]

    @contextmanager
    def _surroundings(self, run: int) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self._contexts[run])
            if self._options.debug:
                stack.enter_context(self._operations[run])
            yield

    def _error(self, what: str) -> CheckpointError:
        text = f"{self._name} runs again for its backward and {what}"
        if self._options.debug:
            text += "; " + _first_difference(*(each.names for each in self._operations))
        return CheckpointError(text)


def _look(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device


def _hooks(
    pack: Callable[[torch.Tensor], Any], unpack: Callable[[Any], torch.Tensor]
) -> AbstractContextManager[None]:
    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _first_difference(first: Sequence[str], second: Sequence[str]) -> str:
    for index, name in enumerate(second):
        before = first[index] if index < len(first) else "nothing"
        if name != before:
            return f"operation {index} was {before} and is {name}"
    return f"its {len(second)} operations up to there were the same"
