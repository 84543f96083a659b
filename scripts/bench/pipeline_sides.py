"""The sides of pipeline_bubble.py, as one rank runs them over Gloo.

A stage sleeps, equally long in forward, in backward of its inputs and in backward of
its weights. Ours is the training step (``_C.train.Step``) with all that belongs to it:
transfers, the token count, the norm; of a C++ model (``_C.models.sleeping``), and of a
Python model whose layers are what the peer, ``torch.distributed.pipelining``, has as
stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

from torchtitan_cpp import _C
from torchtitan_cpp.nn.python_model import PythonModel, Stage
from torchtitan_cpp.nn.stages import keep_modules

WIDTH = 4


class Clock:
    """As ``_C.models.sleeping.Diary``, of stages in Python."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reset()

    def reset(self) -> None:
        self.begin = self.end = self.busy = 0.0
        self.num_works = 0

    def work(self) -> None:
        """One forward or half of a backward."""
        begin = time.monotonic()
        time.sleep(self.seconds)
        self.end = time.monotonic()
        self.busy += self.end - begin
        self.begin = self.begin or begin
        self.num_works += 1


Diary = Clock | _C.models.sleeping.Diary
"""How often, when and how long the stages of a rank have slept."""


class Sleep(torch.autograd.Function):
    """The identity that takes its time, in backward too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, clock: Clock) -> Any:
        ctx.clock = clock
        clock.work()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        ctx.clock.work()
        return gradient.clone(), None


class Layer(torch.nn.Module):
    """[1, WIDTH] to [1, WIDTH].

    Args:
        late: the work for the weight is not done by autograd, but by a call of
            ``backward_weight``, as ``torch.distributed.pipelining`` has it.
    """

    def __init__(self, clock: Clock, *, late: bool) -> None:
        super().__init__()
        self.clock = clock
        self.late = late
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apply: Any = Sleep.apply  # untyped
        result: torch.Tensor
        if self.late:  # with the weight, so that the first stage has a graph
            result = apply(x + self.weight, self.clock)
        else:
            weight = self.weight.clone()
            if weight.requires_grad:
                hooked: Any = weight  # register_hook is untyped
                hooked.register_hook(self.backward_weight)
            result = apply(x, self.clock) + weight
        return result

    def backward_weight(self, *_: torch.Tensor) -> None:
        self.clock.work()


class First(torch.nn.Module):
    """Lets the first stage have gradients of its inputs, which cost as much there."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


class Layers(torch.nn.Module):
    """One layer for each stage of a pipeline."""

    def __init__(self, num_stages: int, clock: Clock) -> None:
        super().__init__()
        self.first = First()
        self.layers = torch.nn.ModuleDict(
            {str(stage): Layer(clock, late=False) for stage in range(num_stages)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.first is not None:
            x = self.first(x)
        for layer in self.layers.values():
            x = layer(x)
        return x


def cpp_part(schedule: Any, rank: int, milliseconds: float) -> tuple[Any, Diary]:
    """This rank's blocks of the C++ model that sleeps."""
    diary = _C.models.sleeping.Diary()
    model = _C.models.sleeping.build(
        num_blocks=schedule.num_stages, seconds=milliseconds / 1e3, diary=diary
    )
    part = _C.parallel.take_part(
        model,
        segments_per_stage=[1] * schedule.num_stages,
        rank_of_stage=schedule.rank_of_stage,
        rank=rank,
    )
    return part, diary


def python_model(schedule: Any, rank: int, clock: Clock) -> PythonModel:
    """This rank's layers of a Python model that sleeps."""
    num_stages = schedule.num_stages
    module = Layers(num_stages, clock)
    stages = [
        Stage(
            names=(*(("first",) if stage == 0 else ()), f"layers.{stage}"),
            is_first=stage == 0,
            is_last=stage == num_stages - 1,
        )
        for stage, owner in enumerate(schedule.rank_of_stage)
        if owner == rank
    ]
    keep_modules(module, {name for stage in stages for name in stage.names})
    return PythonModel(module, lambda prediction, labels: prediction.sum(), stages)


class OurRank:
    """A rank of a training step as the trainer has it, without an optimizer.

    Args:
        group: all ranks.
        part: the rank's stages; None: those of ``model``.
    """

    def __init__(
        self,
        schedule: Any,
        rank: int,
        group: Any,
        *,
        part: Any = None,
        model: PythonModel | None = None,
    ) -> None:
        alone = _C.collectives.Group
        if model is not None:
            part = _C.parallel.as_part(
                model.build_core(),
                segments_per_stage=model.segments_per_stage,
                rank_of_stage=schedule.rank_of_stage,
                rank=rank,
            )
        self._applied = _C.parallel.apply(
            part,
            shards=alone("fsdp"),
            replicas=alone("dp_replicate"),
            tensor=alone("tp"),
            master_dtype=torch.float32,
            compute_dtype=torch.float32,
            reduce_dtype=torch.float32,
            device=torch.device("cpu"),
            reshard_after_forward="default",
            overlap_depth=1,
            recompute=_C.parallel.Recompute(mode="none"),
            num_microbatches=schedule.num_microbatches,
            early_optimizer_step=False,
            pipeline=_C.parallel.PipelineOptions(
                group=group,
                training=schedule,
                rounds=1,
                evaluation=schedule.forward_only(),
            ),
        )
        if model is not None:
            model.bind(
                self._applied.groups,
                self._applied.recompute,
                device=torch.device("cpu"),
            )
        for parameters in self._applied.groups:
            parameters.initialize(0)
        self._step = _C.train.Step(
            self._applied,
            _C.optim.CalledOptimizer([], lambda: None),
            loss_axis=alone("loss"),
            max_norm=float("inf"),
        )
        self._step.record_times(True)
        self._microbatches = [
            {
                "input": torch.zeros(1, WIDTH),
                "labels": torch.zeros(1, WIDTH, dtype=torch.int64),
            }
            for _ in range(schedule.num_microbatches)
        ]

    def step(self) -> None:
        """One training step."""
        self._step.run(self._microbatches, learning_rate=0.0, step=1)

    def actions(self) -> list[tuple[str, float, float]]:
        """What the last step did, with begin and end of each action."""
        program = _C.plan.with_stages(
            self._applied.training_actions, self._applied.shape
        )
        return [
            (str(action), begin, end)
            for action, (begin, end) in zip(program, self._step.times, strict=True)
        ]


def torch_step(name: str, schedule: Any, rank: int, clock: Clock) -> Callable[[], None]:
    """A step of torch's schedule of the same name on the same stages."""
    owners = schedule.rank_of_stage
    parts = []
    for index, owner in enumerate(owners):
        if owner != rank:
            continue
        module = Layer(clock, late=True)
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
