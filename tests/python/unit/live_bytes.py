"""How much memory the tensors on the CPU take at most."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside of ``with``: ``peak`` is the largest sum over the storages alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, weakref.ref[torch.Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and each.device.type == "cpu":
                self._alive[id(each)] = weakref.ref(each)
        sizes: dict[int, int] = {}
        for key, held in list(self._alive.items()):
            tensor = held()
            if tensor is None:
                del self._alive[key]
            else:
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
        self.peak = max(self.peak, sum(sizes.values()))
        return made
