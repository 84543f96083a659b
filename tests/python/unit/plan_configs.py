"""Small configurations of one rank of a mesh whose other ranks do not exist."""

from __future__ import annotations

from typing import Any

import torch

from torchtitan_cpp import build
from torchtitan_cpp.config import JobConfig, check_run, read_config
from torchtitan_cpp.train_spec import get_train_spec
from torchtitan_cpp.world import World

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
