"""What waits for its backward in host memory changes no bit and frees the device."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from plan_configs import SMALL, assert_planned_as_measured, config_of
from torch import nn
from torchtitan_cpp._C.collectives import Group
from toy_models import Layout, Outcome, Values, make, run

from torchtitan_cpp import _C, plan
from torchtitan_cpp.loss import cross_entropy_loss
from torchtitan_cpp.models.llama3 import Transformer, TransformerModelArgs
from torchtitan_cpp.nn.python_model import PythonModel, load_whole
from torchtitan_cpp.world import build_world

OFFLOAD = "--activation_checkpoint.offload"


def deep(dropout: float = 0.0) -> nn.Module:
    return make(num_layers=6, dropout=dropout)


@pytest.mark.parametrize(
    "options",
    [
        {"microbatches": 2},
        {"microbatches": 2, "recompute": "full"},
        {"recompute": "selective", "steps": 2},
        {"recompute": "per_operation"},
        {"shards": 2, "reshard": "always", "microbatches": 2},
    ],
    ids=str,
)
def test_a_python_model_has_the_same_bits(options: dict[str, object]) -> None:
    def trained(offload: bool) -> Outcome:
        torch.manual_seed(8)
        return run(deep, Layout(offload=offload, **options))  # type: ignore[arg-type]

    expected, found = trained(False), trained(True)
    assert (expected.num_offloads, expected.host_peak) == (0, 0)
    assert found.num_offloads == 5 * int(str(options.get("microbatches", 1)))
    assert found.host_peak > 0
    assert found.host_left == 0
    assert found.loss == expected.loss
    same(found.gradients, expected.gradients)
    same(found.weights, expected.weights)


def test_dropout_draws_the_same_numbers() -> None:
    results = []
    for offload in (False, True):
        torch.manual_seed(8)
        layout = Layout(offload=offload, recompute="selective")
        results.append(run(lambda: deep(dropout=0.3), layout).gradients)
    same(*results)


def same(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


class Wide(nn.Module):
    """Layers that save much more than they have parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(16)])
        for layer in self.layers:
            layer.register_forward_hook(lambda _, __, result: result.tanh().exp())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = tokens.unsqueeze(-1) * torch.linspace(-1, 1, 8).double()
        for layer in self.layers:
            h = layer(h)
        return h


def peak_of_a_step(
    core: _C.nn.Model,
    module: nn.Module | None,
    *,
    length: int,
    dtype: torch.dtype,
    mode: str,
    host: _C.nn.HostStore | None,
) -> tuple[int, Values]:
    """Peak bytes of tensors during the step, and the gradients."""
    python = None
    if module is not None:
        python = PythonModel(module, cross_entropy_loss)
        core = python.build_core()
    applied = _C.parallel.apply(
        _C.parallel.whole(core),
        shards=Group("fsdp"),
        replicas=Group("dp_replicate"),
        tensor=Group("tp"),
        master_dtype=dtype,
        compute_dtype=dtype,
        reduce_dtype=dtype,
        device=torch.device("cpu"),
        reshard_after_forward="default",
        overlap_depth=1,
        recompute=_C.parallel.Recompute(mode=mode),
        num_microbatches=1,
        early_optimizer_step=False,
        host=host,
    )
    if python is not None and module is not None:
        whole = {n: p.detach().clone() for n, p in module.named_parameters()}
        python.bind(applied.groups, applied.recompute, device=torch.device("cpu"))
        load_whole(applied.groups, whole)
    else:
        for group in applied.groups:
            group.initialize(3)
    step = _C.train.Step(
        applied,
        _C.optim.CalledOptimizer([], lambda: None),
        loss_axis=Group("loss"),
        max_norm=float("inf"),
    )
    generator = torch.Generator().manual_seed(1)
    batch = {
        name: torch.randint(8, (2, length), generator=generator)
        for name in ("input", "labels")
    }
    memory = _C.core.cpu_memory()
    step.run([batch], learning_rate=0.0, step=1)
    before = memory.live
    memory.reset_peak()
    step.run([batch], learning_rate=0.0, step=2)
    peak = memory.peak - before
    gradients = {s.name: s.gradient.clone() for g in applied.groups for s in g.shards}
    return peak, gradients


@pytest.mark.parametrize("mode", ["none", "full"])
def test_a_python_model_frees_the_device(mode: str) -> None:
    results = []
    host = _C.nn.copies_on_host()
    for store in (None, host):
        torch.manual_seed(2)
        module = Wide().double()
        results.append(
            peak_of_a_step(
                _NO_CORE,
                module,
                length=4096,
                dtype=torch.float64,
                mode=mode,
                host=store,
            )
        )
    (kept, expected), (offloaded, found) = results
    same(found, expected)
    check_memory(kept, offloaded, mode, host)


_NO_CORE: _C.nn.Model = None  # type: ignore[assignment]


@pytest.mark.parametrize("mode", ["none", "full"])
def test_what_autograd_saves_of_a_cpp_block_frees_the_device(mode: str) -> None:
    """Tables of another dtype keep blocks from their hand-written passes."""
    args = TransformerModelArgs(
        dim=32, n_layers=8, n_heads=4, vocab_size=64, max_seq_len=256
    )
    with torch.device("meta"):
        module = Transformer(args)
    core = module.build_core(
        head="loss",
        device=torch.device("cpu"),
        dtype=torch.float64,
        tensor_axis=Group("tp"),
        overlap_exchanges=False,
        loss_parallel=True,
        attention=_C.nn.local_attention(),
    )
    host = _C.nn.copies_on_host()
    results = [
        peak_of_a_step(
            core, None, length=256, dtype=torch.float32, mode=mode, host=store
        )
        for store in (None, host)
    ]
    (kept, expected), (offloaded, found) = results
    same(found, expected)
    check_memory(kept, offloaded, mode, host)


def check_memory(kept: int, offloaded: int, mode: str, host: _C.nn.HostStore) -> None:
    """In mode full inputs move, else much of all. Some tensors are of two blocks."""
    assert host.memory.live == 0
    assert host.memory.peak > 0
    freed = 0.4 * kept if mode == "none" else 0.7 * host.memory.peak
    assert kept - offloaded > freed


@pytest.mark.parametrize(
    ("world_size", "flags"),
    [
        pytest.param(
            1,
            (
                "--activation_checkpoint.mode=none",
                "--activation_checkpoint.offload",
                "--training.global_batch_size=4",
            ),
            id="offload, two microbatches",
        ),
        pytest.param(
            1,
            ("--activation_checkpoint.mode=full", "--activation_checkpoint.offload"),
            id="offload of inputs",
        ),
        pytest.param(
            4,
            (
                "--activation_checkpoint.mode=selective",
                "--activation_checkpoint.selective_ac_option=op",
                "--activation_checkpoint.offload",
            ),
            id="offload of results, fsdp 4",
        ),
    ],
)
def test_the_plan_is_what_a_step_does(
    world_size: int, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_planned_as_measured(world_size, flags, monkeypatch)


def test_the_plan_of_a_cpu_run_shows_the_copies_that_move_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan.main([*SMALL, OFFLOAD]) == 0
    text = capsys.readouterr().out
    assert "Wait Reload s1 mb0" in text
    assert "what is offloaded stays: host memory is the memory of a CPU run" in text
    without = plan.make_plan(config_of())
    found = plan.make_plan(config_of(OFFLOAD))
    assert found.memory.peak.total() == without.memory.peak.total()


def test_the_plan_of_another_device_has_the_bytes_of_the_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "torchtitan_cpp.activation_checkpoint.find_device_type", lambda: "cuda"
    )
    assert plan.main([*SMALL, OFFLOAD]) == 0
    assert "on the host, most" in capsys.readouterr().out
    rates = ["--tflops=100", "--memory_gb_per_second=3000"]
    assert plan.main([*rates, *SMALL, OFFLOAD]) != 0
    assert "give --host_gb_per_second as well" in capsys.readouterr().err
    assert plan.main([*rates, "--host_gb_per_second=50", *SMALL, OFFLOAD]) == 0
    fast, slow = (
        plan.make_plan(
            config_of(OFFLOAD),
            rates=plan.Rates(
                tflops=100, memory_gb_per_second=3000, host_gb_per_second=rate
            ),
        ).time
        for rate in (1000, 0.01)
    )
    assert fast is not None
    assert slow is not None
    assert slow.exposed_seconds > fast.exposed_seconds


def test_without_the_flag_there_is_no_host_memory() -> None:
    config = config_of()
    planned = plan.make_plan(config, build_world(config))
    assert not any(action.kind == "Offload" for action in planned.program)
    assert planned.memory.host_peak == 0
