"""Small configurations of one rank of a mesh whose other ranks do not exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from torchtitan_cpp import _C, build, plan
from torchtitan_cpp.config import JobConfig, check_run, read_config
from torchtitan_cpp.step_bytes import bytes_by_axis
from torchtitan_cpp.train_spec import get_train_spec
from torchtitan_cpp.world import World, build_world

SMALL = ("--training.local_batch_size=2", "--training.seq_len=128")


def config_of(*flags: str, world_size: int = 1) -> JobConfig:
    loaded = read_config(["--comm.mode=fake_backend", *SMALL, *flags])
    return check_run(loaded, world_size=world_size)


def make_step(config: JobConfig, world: World, accumulation: int) -> Any:
    return make_model_and_step(config, world, accumulation)[1]


def make_model_and_step(
    config: JobConfig, world: World, accumulation: int
) -> tuple[build.Model, Any]:
    spec = get_train_spec(config.model.name)
    model = build.build_model(spec, config, world, accumulation=accumulation)
    model.initialize(0)
    optimizers = spec.build_optimizers_fn([model.module], config.optimizer, None, None)
    return model, build.build_step(model, optimizers, config, world)


def random_batches(config: JobConfig, count: int) -> list[dict[str, torch.Tensor]]:
    shape = (config.training.local_batch_size, config.training.seq_len)
    return [
        {name: torch.randint(0, 2048, shape) for name in ("input", "labels")}
        for _ in range(count)
    ]


def assert_planned_as_measured(
    world_size: int, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collectives exactly, peak bytes of tensors within 2 percent."""
    monkeypatch.setenv("NGPU", str(world_size))
    # The peers of the step below answer at once: no transport receives anything.
    monkeypatch.setattr("torchtitan_cpp.plan.make.find_device_type", lambda: "cuda")
    # What is offloaded moves, also on this machine.
    monkeypatch.setattr(
        "torchtitan_cpp.activation_checkpoint.find_device_type", lambda: "cuda"
    )
    config = config_of(*flags, world_size=world_size)
    fake = build_world(config)
    planned = plan.make_plan(config, fake)

    memory = _C.core.cpu_memory()
    before = memory.live
    # Memory behind its tensors, and peers that answer at once with nothing.
    world = replace(fake, device=torch.device("cpu"))
    model, step = make_model_and_step(config, world, planned.shape.num_microbatches)
    batches = random_batches(config, planned.shape.num_microbatches)
    world.recorder.reset()
    memory.reset_peak()
    step.run(batches, learning_rate=1e-3, step=1)
    measured = memory.peak - before
    assert planned.memory.peak.total() == pytest.approx(measured, rel=0.02)
    host = model.applied.host
    assert planned.memory.host_peak == (host.memory.peak if host else 0)
    assert (planned.memory.host_peak > 0) == config.activation_checkpoint.offload

    counted = {
        key: (traffic.calls, traffic.bytes)
        for key, traffic in world.recorder.totals().items()
    }
    by_axis = {
        axis: each.bytes for axis, each in world.recorder.totals_by_group().items()
    }
    assert bytes_by_axis(model, config, world) == by_axis
    assert counted == {
        key: (traffic.calls, traffic.bytes) for key, traffic in planned.traffic.items()
    }
