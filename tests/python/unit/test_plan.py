"""The plan of a step: what is printed, and that it is what a step does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from plan_configs import (
    SMALL,
    assert_planned_as_measured,
    config_of,
    make_step,
    random_batches,
)
from torch.utils._python_dispatch import TorchDispatchMode

from torchtitan_cpp import build, plan, train_spec
from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.models.llama3 import TransformerModelArgs, llama3_args
from torchtitan_cpp.tensor_parallel import RowwiseParallel, tensor_parallel_plan
from torchtitan_cpp.train_spec import get_train_spec
from torchtitan_cpp.world import build_world

LAYOUTS = [
    pytest.param(1, (), id="one rank"),
    pytest.param(1, ("--activation_checkpoint.mode=full",), id="recompute"),
    pytest.param(
        1,
        (
            "--activation_checkpoint.mode=selective",
            "--activation_checkpoint.selective_ac_option=op",
        ),
        id="recompute by operation",
    ),
    pytest.param(
        1, ("--activation_checkpoint.mode=memory_budget",), id="recompute by budget"
    ),
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
    assert_planned_as_measured(world_size, flags, monkeypatch)


def test_main_prints_mesh_program_memory_and_traffic(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "64")
    assert plan.main([*SMALL, "--parallelism.data_parallel_replicate_degree=8"]) == 0
    text = capsys.readouterr().out
    assert "mesh      64 ranks: dp_replicate 8 x dp_shard 8" in text
    assert "6,163,712 parameters in 8 groups, 8 segments" in text
    assert "Tflop a rank" in text
    assert "Wait Unshard g3" in text
    assert "Backward s7 mb0" in text
    assert "between steps" in text
    assert "all_gather" in text
    assert "reduce_scatter" in text


@pytest.mark.parametrize(("flavor", "ranks"), [("8B", 64), ("405B", 512)])
def test_a_large_model_is_planned_without_memory(
    flavor: str, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures equal closed formulas, which nothing of the plan takes part in."""
    monkeypatch.setenv("NGPU", str(ranks))
    rows, seq_len = 2, 8192
    planned = plan.make_plan(
        config_of(
            f"--model.flavor={flavor}",
            f"--training.local_batch_size={rows}",
            f"--training.seq_len={seq_len}",
            "--activation_checkpoint.mode=full",
            world_size=ranks,
        )
    )
    args = llama3_args[flavor]
    heads, kv_heads = args.n_heads, args.n_kv_heads or args.n_heads
    head_dim = args.dim // heads
    hidden = {"8B": 14336, "405B": 53248}[flavor]
    attention = 2 * args.dim * head_dim * (heads + kv_heads)
    block = attention + 3 * args.dim * hidden + 2 * args.dim
    whole = args.n_layers * block + 2 * args.vocab_size * args.dim + args.dim
    assert planned.num_params == whole

    # Rows of each parameter are split, and the vocabulary's may not divide evenly.
    vocabulary = -(-args.vocab_size // ranks) * args.dim
    shard = (args.n_layers * block + args.dim) // ranks + 2 * vocabulary
    kept = planned.memory.before
    assert kept.parameters == kept.gradients == 4 * shard
    assert kept.optimizer == 8 * shard
    tables = 2 * 4 * seq_len * head_dim // 2
    assert kept.constant == tables + 8 * rows * seq_len
    assert kept.total() == 16 * shard + kept.constant

    # In the backward of the last block: its parameters, those of the block before in
    # their packed form and in the transport, and its gradient, 4 bytes each.
    tokens = rows * seq_len
    last = planned.shape.segments[args.n_layers]
    saved = 3 * args.dim + 2 * kv_heads * head_dim + 2 * hidden
    statistics = 2 + heads  # of both norms and attention
    assert last.saved_bytes == 4 * tokens * (saved + statistics)
    # Boundaries in front of the blocks, and the gradients of two.
    boundaries = args.n_layers + 2
    expected = kept.total() + 8 * tokens + 4 * 4 * block
    expected += 4 * tokens * (boundaries * args.dim + saved + statistics)
    expected += last.backward_temporary_bytes
    backward = next(
        index
        for index, action in enumerate(planned.program)
        if (action.kind, action.segment) == ("Backward", args.n_layers)
    )
    assert planned.memory.totals[backward] == expected
    # It needs the most, or the forward that runs again for it: there the gradient of
    # the head may still be on its way.
    top = planned.program[planned.memory.peak_action]
    assert top.kind in ("Backward", "Recompute")
    assert top.segment == args.n_layers
    assert expected <= planned.memory.peak.total() < 1.15 * expected


class Products(TorchDispatchMode):
    """Counts the flops of the matrix products that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            a, b = args[-2:]
            self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return func(*args, **(kwargs or {}))


SIZES = TransformerModelArgs(
    dim=64,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=2048,
    multiple_of=16,
    rope_theta=10000,
)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_those_of_the_products_that_run(
    recompute: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = replace(SIZES, enable_weight_tying=tied)
    monkeypatch.setitem(llama3_args, "sizes", args)
    config = config_of(
        "--model.flavor=sizes",
        "--training.global_batch_size=4",
        "--training.seq_len=32",
        "--training.dtype=float64",  # of float32 some go past torch's dispatcher
        f"--activation_checkpoint.mode={recompute}",
    )
    world = replace(build_world(config), device=torch.device("cpu"))
    planned = plan.make_plan(config)
    step = make_step(config, world, accumulation=2)
    counted = Products()
    with counted:
        step.run(random_batches(config, 2), learning_rate=1e-3, step=1)

    head_dim, seq_len = 64 // 4, 32
    # Of the two products of attention, which run in a kernel of their own.
    attention = 4 * 3 * 4 * head_dim * seq_len * planned.tokens
    forwards = 2 if recompute == "full" else 1
    assert planned.flops == counted.flops + (forwards + 2) * attention

    model = build.build_model(get_train_spec("llama3"), config, world, accumulation=2)
    norms = 6 * (2 * 3 + 1) * 64  # counted with the parameters, but no product
    once = planned.tokens * (model.flops_per_token - norms)
    assert planned.flops - planned.recomputed_flops == once
    assert (planned.recomputed_flops > 0) == (recompute == "full")


RATES = plan.Rates(
    tflops=0.1,
    memory_gb_per_second=5,
    network_gb_per_second=1,
    network_latency_us=100,
)


def test_time_follows_from_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGPU", "4")
    config = config_of(world_size=4)
    time = plan.make_plan(config, rates=RATES).time
    planned = plan.make_plan(config)
    assert planned.time is None
    assert time is not None
    # Parameters and both moments are read and written, gradients read.
    optimizer = 7 * planned.memory.before.parameters / 5e9
    assert time.compute_seconds == pytest.approx(planned.flops / 0.1e12 + optimizer)
    # At least the first gather and the last reduction have nothing to hide behind.
    assert time.exposed_seconds > 2 * 100e-6
    assert time.seconds == pytest.approx(time.compute_seconds + time.exposed_seconds)
    slower = replace(RATES, network_gb_per_second=1e-3)
    slow = plan.make_plan(config, rates=slower).time
    assert slow is not None
    assert slow.compute_seconds == time.compute_seconds
    # Then the network is never idle: three quarters of what is moved are sent.
    sent = 0.75 * sum(
        traffic.bytes
        for (_, verb), traffic in planned.traffic.items()
        if verb != "all_reduce"
    )
    assert slow.seconds == pytest.approx(sent / 1e6, rel=0.05)


def test_main_prints_time_where_rates_are_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "4")
    rates = ("--tflops=0.1", "--memory-gb-per-second", "5")
    assert plan.main([*SMALL, *rates, "--network_gb_per_second=1"]) == 0
    text = capsys.readouterr().out
    assert "ms at its begin" in text
    assert "time of a step at 0.1 Tflop/s, memory 5 GB/s, network 1 GB/s" in text
    assert "of it while computing" in text
    assert plan.main([*SMALL]) == 0
    text = capsys.readouterr().out
    assert "Tflop a rank" in text
    assert "time of a step" not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--tflops=1",),
            "--tflops: the time of a step is predicted from all rates together; give "
            "--memory_gb_per_second and --network_gb_per_second as well",
        ),
        (
            ("--network_latency_us=1",),
            "--network_latency_us: the time of a step is predicted from all rates "
            "together; give --tflops and --memory_gb_per_second and "
            "--network_gb_per_second as well",
        ),
        (
            (
                "--tflops=1",
                "--memory-gb-per-second=0",
                "--network-gb-per-second=1",
            ),
            "--memory_gb_per_second: expected a positive number, found 0",
        ),
    ],
)
def test_rates_that_say_too_little_are_refused(
    flags: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NGPU", "2")
    assert plan.main([*SMALL, *flags]) == 2
    assert capsys.readouterr().err.strip() == message


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
    assert planned.flops == planned.tokens  # TinyArgs says one for each token
    with pytest.raises(ValueError, match="time of a Python model cannot be predicted"):
        plan.make_plan(config, rates=RATES)


def test_a_plan_says_where_pairs_do_not_overlap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = (
        "--parallelism.pipeline_parallel_degree=2",
        "--parallelism.pipeline_parallel_schedule=DualPipeV",
        "--training.local_batch_size=8",  # fewer microbatches make no pair
    )
    said = "pairs of forward and backward run one after the other"
    monkeypatch.setenv("NGPU", "2")
    cpp = plan.make_plan(config_of(*flags, world_size=2))
    assert said not in plan.describe(cpp)
    python = replace(cpp, knows_segments=False)
    assert said in plan.describe(python)
    one_f_one_b = (flags[0], "--parallelism.pipeline_parallel_schedule=1F1B")
    other = plan.make_plan(config_of(*one_f_one_b, world_size=2))
    assert said not in plan.describe(replace(other, knows_segments=False))


def test_a_python_model_that_is_divided_is_planned_by_its_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = replace(
        get_train_spec("llama3"),
        model_cls=Tiny,
        model_args={"only": TinyArgs()},
        parallelize_fn=tensor_parallel_plan({"tok_embeddings": RowwiseParallel()}),
    )
    monkeypatch.setattr(train_spec, "_registered", {"tiny": spec})
    monkeypatch.setenv("NGPU", "2")
    tensor = "--parallelism.tensor_parallel_degree=2"
    config = config_of("--model.name=tiny", "--model.flavor=only", tensor, world_size=2)
    planned = plan.make_plan(config)
    kept = planned.num_params - 2048 * 8 // 2
    assert planned.memory.before.parameters == kept * 4
    assert planned.flops == planned.tokens // 2
    assert "without those of tp inside the Python model" in plan.describe(planned)


def test_main_refuses_what_training_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "3")
    assert plan.main(["--parallelism.data_parallel_shard_degree=2"]) == 2
    assert "data_parallel_shard_degree" in capsys.readouterr().err
