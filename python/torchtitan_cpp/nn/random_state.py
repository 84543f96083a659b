"""The random numbers of a layer's call, for when it runs a second time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class RandomState:
    """The state of torch's generators for the CPU and for ``device``, as of now."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda: torch.Tensor | None = None
        if device.type == "cuda":
            self._cuda = torch.cuda.get_rng_state(device)

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Inside, the numbers since this state come again."""
        now = RandomState(self._device)
        self.restore()
        try:
            yield
        finally:
            now.restore()
