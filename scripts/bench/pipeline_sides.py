"""The two sides of pipeline_bubble.py, as one rank runs them over Gloo.

A stage sleeps, equally long in forward, in backward of its inputs and in backward of
its weights. Both sides run the same stage; ours follows the stage programs of
``_C.plan.add_transfers``, the peer is ``torch.distributed.pipelining``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

from torchtitan_cpp import _C

WIDTH = 4


class Clock:
    """The seconds that the stages of a rank have slept."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.busy = 0.0

    def work(self) -> None:
        """One forward or half of a backward."""
        begin = time.perf_counter()
        time.sleep(self.seconds)
        self.busy += time.perf_counter() - begin


class Sleep(torch.autograd.Function):
    """The identity, slowly; its backward is that of the inputs alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, clock: Clock) -> Any:
        ctx.clock = clock
        clock.work()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        ctx.clock.work()
        return gradient.clone(), None, None


class Stage(torch.nn.Module):
    """[1, WIDTH] to [1, WIDTH]; with a weight, so that the first stage has a graph."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apply: Any = Sleep.apply  # untyped
        result: torch.Tensor = apply(x, self.weight, self.clock)
        return result

    def backward_weight(self) -> None:
        self.clock.work()


class OurRank:
    """Runs a rank's program, action by action."""

    def __init__(self, schedule: Any, rank: int, clock: Clock) -> None:
        self.program = _C.plan.add_transfers(schedule)[rank]
        self.rank_of_stage = schedule.rank_of_stage
        self.rank = rank
        self.stages = {
            stage: Stage(clock)
            for stage, owner in enumerate(self.rank_of_stage)
            if owner == rank
        }
        self.spans: list[tuple[float, float]] = []

    def step(self) -> None:
        """All actions; leaves their times in ``spans``."""
        self.inputs: dict[Any, torch.Tensor] = {}
        self.outputs: dict[Any, torch.Tensor] = {}
        self.gradients: dict[Any, torch.Tensor] = {}  # of outputs
        self.input_gradients: dict[Any, torch.Tensor] = {}
        self.flights: dict[Any, Any] = {}
        self.spans = []
        for action in self.program:
            begin = time.monotonic()
            self._run(action)
            self.spans.append((begin, time.monotonic()))

    def _run(self, action: Any) -> None:
        stage, key = action.stage, (action.stage, action.microbatch)
        kind = action.kind
        if kind == "Wait":
            self.flights.pop((action.waits_for, key)).wait()
        elif kind == "Forward":
            self._forward(stage, key)
        elif kind in ("Backward", "BackwardInput"):
            self._backward_input(stage, key)
            if kind == "Backward":
                self.stages[stage].backward_weight()
        elif kind == "BackwardWeight":
            self.stages[stage].backward_weight()
        else:
            self.flights[kind, key] = self._start(kind, stage, key)

    def _forward(self, stage: int, key: Any) -> None:
        x = self.inputs.setdefault(key, torch.zeros(1, WIDTH)).requires_grad_()
        y = self.outputs[key] = self.stages[stage](x)
        if self.rank_of_stage[stage + 1 : stage + 2] == [self.rank]:
            self.inputs[stage + 1, key[1]] = y.detach()

    def _backward_input(self, stage: int, key: Any) -> None:
        x, y = self.inputs.pop(key), self.outputs.pop(key)
        gradient = self.gradients.pop(key, torch.ones(1, WIDTH))
        (self.input_gradients[key],) = torch.autograd.grad(y, x, gradient)
        if stage > 0 and self.rank_of_stage[stage - 1] == self.rank:
            self.gradients[stage - 1, key[1]] = self.input_gradients.pop(key)

    def _start(self, kind: str, stage: int, key: Any) -> Any:
        up = kind in ("SendActivation", "ReceiveGradient")
        peer = self.rank_of_stage[stage + (1 if up else -1)]
        if kind == "SendActivation":
            return dist.isend(self.outputs[key].detach(), peer)
        if kind == "SendGradient":
            return dist.isend(self.input_gradients.pop(key), peer)
        into = self.inputs if kind == "ReceiveActivation" else self.gradients
        into[key] = torch.empty(1, WIDTH)
        return dist.irecv(into[key], peer)


def torch_step(name: str, schedule: Any, rank: int, clock: Clock) -> Callable[[], None]:
    """A step of torch's schedule of the same name on the same stages."""
    owners = schedule.rank_of_stage
    parts = []
    for index, owner in enumerate(owners):
        if owner != rank:
            continue
        module = Stage(clock)
        parts.append(
            PipelineStage(
                module,
                index,
                len(owners),
                torch.device("cpu"),
                dw_builder=partial(getattr, module, "backward_weight"),
            )
        )
    schedule_class: Any = get_schedule_class(name)
    single = name in ("1F1B", "GPipe")
    runtime = schedule_class(
        parts[0] if single else parts,
        schedule.num_microbatches,
        loss_fn=lambda output, target: output.sum(),
    )
    data = torch.zeros(schedule.num_microbatches, WIDTH)
    last = owners[-1] == rank

    def step() -> None:
        inputs = (data,) if owners[0] == rank else ()
        runtime.step(*inputs, **({"target": data, "losses": []} if last else {}))

    return step
