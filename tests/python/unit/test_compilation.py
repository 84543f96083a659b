"""torch.compile of a Python model's layers and loss."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from toy_models import Layout, assert_close, make, run

from torchtitan_cpp.compilation import compile_misfits, compile_model
from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.config.model import ActivationCheckpoint, Compile
from torchtitan_cpp.loss import cross_entropy_loss


def config_of(backend: str = "aot_eager", **more: object) -> JobConfig:
    return JobConfig(compile=Compile(enable=True, backend=backend), **more)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize(
    "layout",
    [
        Layout(microbatches=2),
        Layout(microbatches=2, recompute="full"),
        Layout(shards=2, recompute="selective"),
    ],
    ids=str,
)
def test_gradients_are_those_without(layout: Layout) -> None:
    def build() -> nn.Module:
        module = make()
        compile_model(module, cross_entropy_loss, config_of())
        return module

    expected = run(make, layout)
    found = run(build, layout)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert_close(found.gradients, expected.gradients, 1e-10)
    assert counters["stats"]["unique_graphs"] > 0


def test_layers_of_one_class_share_a_graph() -> None:
    module = nn.Module()
    module.layers = nn.ModuleList(
        nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        for _ in range(12)
    )
    expected = [layer.linear1.weight for layer in module.layers]
    compile_model(module, cross_entropy_loss, config_of())
    x = torch.randn(2, 5, 8, requires_grad=True)
    for layer in module.layers:
        layer(x).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1
    assert all(weight.grad is not None for weight in expected)


def test_the_loss_is_compiled_where_it_is_named() -> None:
    module = make()
    assert compile_model(module, cross_entropy_loss, JobConfig()) is cross_entropy_loss
    assert all(layer._compiled_call_impl is None for layer in module.layers)
    compiled = compile_model(module, cross_entropy_loss, config_of())
    assert all(layer._compiled_call_impl is not None for layer in module.layers)
    prediction, labels = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    assert compiled is not cross_entropy_loss
    assert torch.equal(
        compiled(prediction, labels), cross_entropy_loss(prediction, labels)
    )


def test_only_what_is_named_is_compiled() -> None:
    module = make()
    section = Compile(enable=True, backend="eager", components=["loss"])
    compile_model(module, cross_entropy_loss, JobConfig(compile=section))
    assert all(layer._compiled_call_impl is None for layer in module.layers)
    section = Compile(enable=True, backend="eager", components=["model"])
    loss = compile_model(module, cross_entropy_loss, JobConfig(compile=section))
    assert loss is cross_entropy_loss


def test_a_memory_budget_goes_to_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = torch._functorch.config
    for name in ("activation_memory_budget", "visualize_memory_budget_pareto"):
        monkeypatch.setattr(config, name, getattr(config, name))
    monkeypatch.setattr(config, "memory_budget_pareto_dir", None)
    ac = ActivationCheckpoint(
        mode="memory_budget", memory_budget=0.3, visualize_memory_budget_pareto=True
    )
    compile_model(make(), cross_entropy_loss, config_of(activation_checkpoint=ac))
    assert config.activation_memory_budget == 0.3
    assert config.visualize_memory_budget_pareto
    assert config.memory_budget_pareto_dir.endswith("/memory_budget_pareto")


@pytest.mark.parametrize(
    ("config", "field", "message"),
    [
        (
            config_of("nvcc"),
            "compile.backend",
            "expected one of aot_eager, .*, found 'nvcc'",
        ),
        (
            config_of(
                activation_checkpoint=ActivationCheckpoint(
                    mode="selective", selective_ac_option="op"
                )
            ),
            "activation_checkpoint.selective_ac_option",
            '"op" cannot be combined with compile.enable',
        ),
    ],
)
def test_what_cannot_be_compiled_is_found(
    config: JobConfig, field: str, message: str
) -> None:
    misfits = compile_misfits(config)
    assert list(misfits) == [field]
    assert re.search(message, misfits[field])


def test_what_can_be_compiled_is_no_misfit() -> None:
    assert compile_misfits(config_of()) == compile_misfits(JobConfig()) == {}
