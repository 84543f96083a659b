"""The plan of a step: what is printed, and that it is what a step does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from torchtitan_cpp import _C, build, plan, train_spec
from torchtitan_cpp.config import JobConfig, check_run, read_config
from torchtitan_cpp.train_spec import get_train_spec
from torchtitan_cpp.world import World, build_world

SMALL = ("--training.local_batch_size=2", "--training.seq_len=128")


def config_of(*flags: str, world_size: int = 1) -> JobConfig:
    loaded = read_config(["--comm.mode=fake_backend", *SMALL, *flags])
    return check_run(loaded, world_size=world_size)


def make_step(config: JobConfig, world: World, accumulation: int) -> Any:
    spec = get_train_spec(config.model.name)
    model = build.build_model(spec, config, world, accumulation=accumulation)
    model.initialize(0)
    optimizers = spec.build_optimizers_fn([model.module], config.optimizer, None, None)
    return build.build_step(model, optimizers, config, world)


def random_batches(config: JobConfig, count: int) -> list[dict[str, torch.Tensor]]:
    shape = (config.training.local_batch_size, config.training.seq_len)
    return [
        {name: torch.randint(0, 2048, shape) for name in ("input", "labels")}
        for _ in range(count)
    ]


LAYOUTS = [
    pytest.param(1, (), id="one rank"),
    pytest.param(1, ("--activation_checkpoint.mode=full",), id="recompute"),
    pytest.param(4, (), id="fsdp 4"),
    pytest.param(
        4,
        (
            "--parallelism.data_parallel_replicate_degree=2",
            "--training.global_batch_size=16",
            "--parallelism.fsdp_reshard_after_forward=never",
        ),
        id="hsdp 2x2, two microbatches",
    ),
    pytest.param(
        2,
        (
            "--parallelism.data_parallel_replicate_degree=2",
            "--optimizer.early_step_in_backward",
        ),
        id="ddp 2, early steps",
    ),
    pytest.param(2, ("--training.mixed_precision_param=bfloat16",), id="bf16 fsdp 2"),
]


@pytest.mark.parametrize(("world_size", "flags"), LAYOUTS)
def test_the_plan_is_what_a_step_does(
    world_size: int, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collectives exactly, peak bytes of tensors within 5 percent."""
    monkeypatch.setenv("NGPU", str(world_size))
    config = config_of(*flags, world_size=world_size)
    fake = build_world(config)
    planned = plan.make_plan(config, fake)

    memory = _C.core.cpu_memory()
    before = memory.live
    # Memory behind its tensors, and peers that answer at once with nothing.
    world = replace(fake, device=torch.device("cpu"))
    step = make_step(config, world, planned.shape.num_microbatches)
    batches = random_batches(config, planned.shape.num_microbatches)
    world.recorder.reset()
    memory.reset_peak()
    step.run(batches, learning_rate=1e-3, step=1)
    measured = memory.peak - before
    assert planned.memory.peak.total() == pytest.approx(measured, rel=0.05)

    counted = {
        key: (traffic.calls, traffic.bytes)
        for key, traffic in world.recorder.totals().items()
    }
    assert counted == {
        key: (traffic.calls, traffic.bytes) for key, traffic in planned.traffic.items()
    }


def test_main_prints_mesh_program_memory_and_traffic(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "64")
    assert plan.main([*SMALL, "--parallelism.data_parallel_replicate_degree=8"]) == 0
    text = capsys.readouterr().out
    assert "mesh      64 ranks: dp_replicate 8 x dp_shard 8" in text
    assert "6,163,712 parameters in 8 groups, 8 segments" in text
    assert "Wait Unshard g3" in text
    assert "Backward s7 mb0" in text
    assert "between steps" in text
    assert "all_gather" in text
    assert "reduce_scatter" in text


def test_a_large_model_is_planned_without_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NGPU", "512")
    config = config_of("--model.flavor=405B", world_size=512)
    planned = plan.make_plan(config)
    assert planned.num_params > 400e9
    kept = planned.memory.before
    assert kept.parameters == pytest.approx(planned.num_params * 4 / 512, rel=1e-3)
    assert kept.optimizer == 2 * kept.parameters


class Tiny(torch.nn.Module):
    """Embedding, one linear layer and a head."""

    def __init__(self, args: TinyArgs) -> None:
        super().__init__()
        self.tok_embeddings = torch.nn.Embedding(args.vocab_size, 8)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8)])
        self.output = torch.nn.Linear(8, args.vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.output(h)


@dataclass
class TinyArgs:
    vocab_size: int = 2048

    def update_from_config(self, job_config: JobConfig) -> None:
        """Nothing depends on it."""

    def get_nparams_and_flops(
        self, model: torch.nn.Module, seq_len: int
    ) -> tuple[int, int]:
        return sum(p.numel() for p in model.parameters()), 1


def test_a_python_model_is_planned_but_for_its_activations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = replace(
        get_train_spec("llama3"), model_cls=Tiny, model_args={"only": TinyArgs()}
    )
    monkeypatch.setattr(train_spec, "_registered", {"tiny": spec})
    monkeypatch.setenv("NGPU", "2")
    config = config_of("--model.name=tiny", "--model.flavor=only", world_size=2)
    planned = plan.make_plan(config)
    assert planned.memory.before.parameters == planned.num_params * 4 // 2
    assert planned.traffic["fsdp", "all_gather"].calls > 0
    assert "without the activations of the Python model" in plan.describe(planned)


def test_main_refuses_what_training_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "3")
    assert plan.main(["--parallelism.data_parallel_shard_degree=2"]) == 2
    assert "data_parallel_shard_degree" in capsys.readouterr().err
