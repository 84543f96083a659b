"""Building modules on meta: shapes and names, without the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWING = (
    *(torch.Tensor.bernoulli_, torch.Tensor.cauchy_, torch.Tensor.exponential_),
    *(torch.Tensor.geometric_, torch.Tensor.log_normal_, torch.Tensor.normal_),
    *(torch.Tensor.random_, torch.Tensor.uniform_),
)


@contextmanager
def on_meta() -> Iterator[None]:
    """A context whose new tensors are on meta, and that fills none of those.

    As ``torch.device("meta")``, but ``torch.nn.init`` and drawing leave meta tensors
    alone. torch has some of these functions for meta in Python, and the first call
    imports its compiler (torch 2.13: two seconds for every process of a job).
    """
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _DRAWING or getattr(func, "__module__", "") == "torch.nn.init":
            filled = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(filled, torch.Tensor) and filled.is_meta:
                return filled
        return func(*args, **(kwargs or {}))
