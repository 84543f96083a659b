"""What a rank exchanges in its training steps, by mesh axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


class Counted(Protocol):
    """What was counted on one mesh axis."""

    @property
    def bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...


class CountsTraffic(Protocol):
    """As ``_C.collectives.Recorder``."""

    def totals_by_group(self) -> Mapping[str, Counted]: ...


@dataclass
class AxisTraffic:
    """Of one mesh axis, in one step or several."""

    bytes: float = 0
    """Of the larger side of each call: the result of an all-gather, the input of a
    reduce-scatter, else the tensor."""
    seconds: float = 0
    """That the step spent in calls of this axis and in waiting for them: what overlaps
    with computing is not in it. On CUDA the host only starts a collective and goes on,
    so these are seconds of the host, not of the device."""


class StepTraffic:
    """Adds up what ``recorder`` counts within training steps, and nowhere else.

    Two looks at the recorder a step are all that it costs.
    """

    def __init__(self, recorder: CountsTraffic) -> None:
        self._recorder = recorder
        self._since_last_log: dict[str, AxisTraffic] = {}
        self._steps_since_last_log = 0
        self._all: dict[str, AxisTraffic] = {}

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Inside is one training step; one that raises is not counted."""
        before = self._recorder.totals_by_group()
        yield
        for axis, total in self._recorder.totals_by_group().items():
            earlier = before.get(axis)
            moved = total.bytes - (earlier.bytes if earlier else 0)
            seconds = total.seconds - (earlier.seconds if earlier else 0)
            if moved == 0 and seconds == 0:
                continue  # an axis of what goes on around steps
            for sums in (self._since_last_log, self._all):
                sum_of_axis = sums.setdefault(axis, AxisTraffic())
                sum_of_axis.bytes += moved
                sum_of_axis.seconds += seconds
        self._steps_since_last_log += 1

    def take(self) -> dict[str, float]:
        """Means of a step since the last call, as metrics, and begin anew.

        ``communication/<axis>/bytes`` and ``communication/<axis>/seconds`` for each
        axis that was used.
        """
        steps = max(1, self._steps_since_last_log)
        metrics: dict[str, float] = {}
        for axis, sums in sorted(self._since_last_log.items()):
            metrics[f"communication/{axis}/bytes"] = sums.bytes / steps
            metrics[f"communication/{axis}/seconds"] = sums.seconds / steps
        self._since_last_log, self._steps_since_last_log = {}, 0
        return metrics

    def seconds(self) -> dict[str, float]:
        """Of all steps so far, by axis."""
        return {axis: sums.seconds for axis, sums in sorted(self._all.items())}
