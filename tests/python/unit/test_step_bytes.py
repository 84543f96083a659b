"""The bytes that a summary announces are those of the plan, which runs the segments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plan_configs import config_of

from torchtitan_cpp import _C, plan
from torchtitan_cpp.build import build_model
from torchtitan_cpp.step_bytes import bytes_by_axis
from torchtitan_cpp.train_spec import get_train_spec
from torchtitan_cpp.world import build_fake_world


def degrees(**sizes: int) -> tuple[str, ...]:
    return tuple(
        f"--parallelism.{name}_parallel_degree={degree}"
        for name, degree in sizes.items()
    )


def loss_of_ones_own(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    raise AssertionError("nothing has to be computed")


LAYOUTS = [
    pytest.param(8, 0, degrees(tensor=2, context=2), id="fsdp 2, cp 2, tp 2"),
    pytest.param(
        8,
        5,
        (
            *degrees(tensor=2, pipeline=2),
            "--training.mixed_precision_param=bfloat16",
            "--parallelism.fsdp_reshard_after_forward=always",
            "--activation_checkpoint.mode=full",
        ),
        id="pp 2, fsdp 2, tp 2 in bfloat16, the head's rank",
    ),
    pytest.param(
        4,
        1,
        (
            *degrees(tensor=2, pipeline=2),
            "--parallelism.pipeline_parallel_schedule=ZBVZeroBubble",
            "--parallelism.disable_loss_parallel",
            "--parallelism.enable_async_tensor_parallel",
        ),
        id="pp 2 in a V, tp 2, whole logits",
    ),
    pytest.param(
        4,
        0,
        (
            *degrees(context=4),
            "--parallelism.context_parallel_rotate_method=ulysses",
            "--model.flavor=debugmodel_flex_attn",
        ),
        id="cp 4 with documents",
    ),
]


@pytest.mark.parametrize(("world_size", "rank", "flags"), LAYOUTS)
def test_bytes_are_those_of_the_plan(
    world_size: int, rank: int, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGPU", str(world_size))
    config = config_of(*flags, world_size=world_size)
    world = build_fake_world(config, rank)
    spec = get_train_spec(config.model.name)
    model = build_model(spec, config, world, accumulation=1)
    planned: dict[str, int] = {}
    for (axis, _), traffic in plan.make_plan(
        config, world, model=model
    ).traffic.items():
        planned[axis] = planned.get(axis, 0) + traffic.bytes
    found = bytes_by_axis(model, config, world)
    assert found == planned
    assert all(found.values())


def test_a_loss_of_ones_own_reads_whole_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NGPU", "2")
    moved = {}
    for name, flags in {
        "own": (),
        "whole": ("--parallelism.disable_loss_parallel",),
        "divided": (),
    }.items():
        config = config_of(*degrees(tensor=2), *flags, world_size=2)
        world = build_fake_world(config)
        spec = get_train_spec(config.model.name)
        if name == "own":
            spec = replace(spec, build_loss_fn=lambda job_config: loss_of_ones_own)
        model = build_model(spec, config, world, accumulation=1)
        moved[name] = bytes_by_axis(model, config, world)["tp"]
    assert moved["own"] == moved["whole"] != moved["divided"]


def test_one_rank_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGPU", "1")
    config = config_of()
    world = build_fake_world(config)
    model = build_model(
        get_train_spec(config.model.name), config, world, accumulation=1
    )
    assert bytes_by_axis(model, config, world) == {}


def test_a_size_between_stages_that_is_not_given_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NGPU", "2")
    config = config_of(*degrees(pipeline=2), world_size=2)
    world = build_fake_world(config)
    spec = get_train_spec(config.model.name)
    model = build_model(spec, config, world, accumulation=1)
    with pytest.raises(ValueError, match="the size of 'h', which travels between"):
        _C.parallel.with_exchanges(
            model.applied,
            model.applied.shape,
            hidden={},
            tokens=[1, 128],
            compute_dtype=torch.float32,
            reduce_dtype=torch.float32,
            device=world.device,
        )
