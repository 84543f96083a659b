"""Python's garbage collection at chosen steps, so that all ranks pause together."""

from __future__ import annotations

import gc
import time

import torch
from torch._subclasses.fake_tensor import FakeTensor

from torchtitan_cpp.logging import logger


class GarbageCollection:
    """Turns the automatic collection off and collects every ``gc_freq`` steps.

    Args:
        gc_freq: ``training.gc_freq``, steps between collections.
        debug: ``training.gc_debug``: collect every generation after every step and
            report what reference cycles kept alive.
        leads_process: False on a rank whose process another one collects in.
    Raises:
        ValueError: if ``gc_freq`` is not positive.
    """

    def __init__(
        self, gc_freq: int = 1000, debug: bool = False, *, leads_process: bool = True
    ) -> None:
        if gc_freq <= 0:
            raise ValueError(
                f"training.gc_freq: expected a positive number of steps, "
                f"but found {gc_freq}"
            )
        self.gc_freq = gc_freq
        self.debug = debug
        self._leads_process = leads_process
        self._was_enabled = leads_process and gc.isenabled()
        if leads_process:
            gc.disable()
            self.collect("Initial GC collection")

    def run(self, step_count: int) -> None:
        """To be called once a step, before its work."""
        if not self._leads_process:
            return
        if self.debug:
            self._report_cycles(step_count)
        elif step_count > 1 and step_count % self.gc_freq == 0:
            self.collect("Performing periodic GC collection")

    @staticmethod
    def collect(reason: str, generation: int = 1) -> None:
        """Collect now and log how long it took."""
        begin = time.monotonic()
        gc.collect(generation)
        logger.info("[GC] %s took %.2f seconds", reason, time.monotonic() - begin)

    def close(self) -> None:
        """Give collecting back to Python, if it had it before."""
        if self._was_enabled:
            gc.enable()

    def _report_cycles(self, step_count: int) -> None:
        begin = time.monotonic()
        earlier = gc.get_debug()
        # Garbage is kept for a look at it first; a second collection frees it.
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            num_objects = len(gc.garbage)
            sizes = [
                each.nbytes
                for each in gc.garbage
                # A compiler's tensors may have sizes that are no numbers.
                if issubclass(type(each), torch.Tensor)
                and not isinstance(each, FakeTensor)
            ]
            gc.garbage.clear()
        finally:
            gc.set_debug(earlier)
        gc.collect()
        logger.info(
            "[GC] step %d: %d objects in reference cycles, among them %d tensors of "
            "%d bytes; took %.2f seconds",
            step_count,
            num_objects,
            len(sizes),
            sum(sizes),
            time.monotonic() - begin,
        )
