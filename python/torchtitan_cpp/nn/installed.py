"""Which tensors a module finds under its parameters' names, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

OnTheWay = Callable[[Sequence[str], Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""Names of parameters and their tensors, to what their modules find instead."""


class Slot(NamedTuple):
    """A place for a tensor in a module's table of parameters."""

    table: dict[str, Any]
    key: str
    tensor: torch.Tensor
    name: str | None = None
    """Full name of a parameter that is changed on the way to the module."""


class Installed:
    """Puts tensors in their slots inside ``with``, and back what was there after it.

    Writing the table is what costs least, and it works for every way in which the
    module's code reads a parameter.
    """

    def __init__(
        self, slots: Sequence[Slot], on_the_way: OnTheWay | None = None
    ) -> None:
        self._slots = slots
        self._on_the_way = on_the_way
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before = [slot.table[slot.key] for slot in self._slots]
        for table, key, tensor, _ in self._slots:
            table[key] = tensor
        if self._on_the_way is None:
            return
        changed = [slot for slot in self._slots if slot.name is not None]
        names = [slot.name or "" for slot in changed]
        tensors = self._on_the_way(names, [slot.tensor for slot in changed])
        for slot, tensor in zip(changed, tensors, strict=True):
            slot.table[slot.key] = tensor

    def __exit__(self, *error: object) -> None:
        for slot, before in zip(self._slots, self._before, strict=True):
            slot.table[slot.key] = before


class Absent(torch.Tensor):
    """Stands for a parameter that may only be read inside its layer's call.

    Outside it the parameter need not be gathered, and its gradient would be lost.
    Shape, dtype and device can be asked for.
    """

    _name_of_parameter: str

    @classmethod
    def standing_for(cls, name: str, leaf: torch.Tensor) -> Absent:
        like = torch.empty((), dtype=leaf.dtype, device=leaf.device).expand(leaf.shape)
        absent = torch.Tensor._make_subclass(cls, like)
        absent._name_of_parameter = name
        return absent

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Any = None,
    ) -> Any:
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            name = next(
                (x._name_of_parameter for x in args if isinstance(x, Absent)),
                "of a layer",
            )
        raise ValueError(
            f"the parameter {name} is read outside of the call of its layer; a layer's "
            "parameters are gathered only while it is called, so let the layer's own "
            "forward use them"
        )


def _getter(name: str) -> Any:
    return getattr(torch.Tensor, name).__get__


_METADATA = {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.is_floating_point,
    torch.Tensor.__len__,
    *(_getter(name) for name in ("shape", "dtype", "device", "ndim", "layout")),
    *(_getter(name) for name in ("is_cuda", "is_cpu", "is_meta", "requires_grad")),
}
