"""The calls of a model's layers: where the step's program takes over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torchtitan_cpp import _C
from torchtitan_cpp.nn.installed import Installed, OnTheWay, Slot
from torchtitan_cpp.nn.random_state import RandomState
from torchtitan_cpp.nn.recomputation import Recomputation, RecomputeOptions
from torchtitan_cpp.rank_thread import pause, turn


class Run:
    """One forward of the model that holds the layers."""

    def __init__(self, progress: _C.nn.Progress, dtype: torch.dtype) -> None:
        self.progress = progress
        self._dtype = dtype

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Floating-point arguments take the dtype of the gathered parameters."""
        if tensor.is_floating_point() and tensor.dtype != self._dtype:
            return tensor.to(self._dtype)
        return tensor


class Layer:
    """A child of ``layers``. Its calls run as one segment of the step's program.

    It takes the place where ``nn.Module.compile`` puts its compiled call, so hooks and
    names of the module stay as they are, and copies of it are plain modules again.
    """

    def __init__(self, name: str, index: int, module: nn.Module) -> None:
        self.name = name
        self.index = index
        self.run: Run | None = None
        """The forward under way; None: calls are plain calls."""
        self.slots: Sequence[Slot] = ()
        """Every parameter that it can read, gathered."""
        self.on_the_way: OnTheWay | None = None
        self.recompute: RecomputeOptions | None = None
        """How it runs again before its backward; None: it does not."""
        self.device = torch.device("cpu")
        self.storages: frozenset[int] = frozenset()
        """Of its parameters; nothing outside may share them."""
        self.plain_call: Callable[..., Any] = (
            module._compiled_call_impl or module._call_impl
        )
        module._compiled_call_impl = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self.run
        if run is None:
            return self.plain_call(*args, **kwargs)
        flat, structure = _flatten_call(args, kwargs)
        places = [i for i, each in enumerate(flat) if isinstance(each, torch.Tensor)]
        inputs = [run.cast(flat[i]) for i in places]
        for i in places:
            flat[i] = None  # a call that is kept must not keep the caller's graph
        call = _Call(self, flat, structure, places)
        again = call.again if self.recompute is not None else None
        with pause():  # the program waits for other ranks
            results = run.progress.call(self.index, inputs, call, again)
        return call.assemble(results)


class _Call:
    """One call of a layer as a function of its tensors; may run again in backward."""

    def __init__(
        self,
        layer: Layer,
        flat: list[Any],
        structure: pytree.TreeSpec | None,
        places: list[int],
    ) -> None:
        self._layer = layer
        self._flat = flat
        self._structure = structure
        self._places = places
        self._result: tuple[list[Any], pytree.TreeSpec | None] | None = None
        self._recomputation: Recomputation | None = None
        self._random_state: RandomState | None = None
        self._autocast: torch.autocast | None = None

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with turn():
            return self._first_run(tensors)

    def _first_run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        layer = self._layer
        if layer.recompute is None or not torch.is_grad_enabled():
            flat, structure = self._run(tensors)
        else:
            self._note_surroundings(layer.recompute)
            self._recomputation = Recomputation(layer.name, layer.recompute)
            with self._recomputation.first_run():
                flat, structure = self._run(tensors)
        results = [each for each in flat if isinstance(each, torch.Tensor)]
        for result in results:
            if result.untyped_storage()._cdata in layer.storages:
                raise ValueError(
                    f"{layer.name} returns a view of its own parameter, which is not "
                    "gathered any more after the call; return a copy (.clone())"
                )
        rest = [_TENSOR if isinstance(x, torch.Tensor) else x for x in flat]
        self._result = (rest, structure)
        return results

    def again(self, tensors: Sequence[torch.Tensor]) -> None:
        """Make what the graph of the first run has not saved."""
        assert self._recomputation is not None
        with turn(), ExitStack() as stack:
            self._restore_surroundings(stack)
            self._recomputation.second_run(lambda: self._run(tensors))

    def _run(
        self, tensors: Sequence[torch.Tensor]
    ) -> tuple[list[Any], pytree.TreeSpec | None]:
        flat = list(self._flat)
        for place, tensor in zip(self._places, tensors, strict=True):
            flat[place] = tensor
        args: Sequence[Any] = flat
        kwargs: Mapping[str, Any] = {}
        if self._structure is not None:
            args, kwargs = pytree.tree_unflatten(flat, self._structure)
        with Installed(self._layer.slots, self._layer.on_the_way):
            result = self._layer.plain_call(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return [result], None
        return pytree.tree_flatten(result)

    def assemble(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The layer's result with these tensors in it."""
        assert self._result is not None
        rest, structure = self._result
        following = iter(tensors)
        flat = [next(following) if each is _TENSOR else each for each in rest]
        return flat[0] if structure is None else pytree.tree_unflatten(flat, structure)

    def _note_surroundings(self, options: RecomputeOptions) -> None:
        if options.preserve_rng_state:
            self._random_state = RandomState(self._layer.device)
        kind = "cuda" if self._layer.device.type == "cuda" else "cpu"
        self._autocast = torch.autocast(
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
        )

    def _restore_surroundings(self, stack: ExitStack) -> None:
        if self._random_state is not None:
            stack.enter_context(self._random_state.repeated())
        if self._autocast is not None:
            stack.enter_context(self._autocast)


def _flatten_call(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], pytree.TreeSpec | None]:
    """The leaves; no structure where all are arguments in a row, as in most calls."""
    if not kwargs and all(isinstance(each, torch.Tensor) for each in args):
        return list(args), None
    return pytree.tree_flatten((args, kwargs))


_TENSOR = object()
