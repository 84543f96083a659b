"""What a model written in Python cannot take is found before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from torchtitan_cpp import get_train_spec, register_train_spec, train_spec
from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.config.load import from_python
from torchtitan_cpp.config.model import ActivationCheckpoint, Compile, Model
from torchtitan_cpp.config.parallelism import Comm
from torchtitan_cpp.config.training import Validation
from torchtitan_cpp.logging import logger
from torchtitan_cpp.misfits import model_misfits
from torchtitan_cpp.tensor_parallel import (
    ColwiseParallel,
    Replicate,
    tensor_parallel_plan,
)


@dataclass
class Args:
    tied: bool = False
    own: bool = False

    def update_from_config(self, job_config: Any) -> None:
        pass


class Tied(nn.Module):
    """Ends with the weight that it begins with, or holds one itself, if asked."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(16, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.output = nn.Linear(4, 16, bias=False)
        if args.tied:
            self.output.weight = self.tok_embeddings.weight
        if args.own:
            self.positions = nn.Parameter(torch.zeros(8, 4))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_spec, "_registered", {})
    spec = replace(
        get_train_spec("llama3"),
        model_cls=Tied,
        model_args={"tied": Args(tied=True), "plain": Args(), "own": Args(own=True)},
        state_dict_adapter=None,
    )
    register_train_spec("mine", spec)


def misfits(
    flavor: str = "plain", *, name: str = "mine", **sections: Any
) -> dict[str, str]:
    model = Model(name=name, flavor=flavor)
    return model_misfits(from_python(JobConfig(model=model, **sections)))


def with_stages() -> Any:
    return replace(
        JobConfig().parallelism,
        pipeline_parallel_degree=2,
        pipeline_parallel_schedule="1F1B",
    )


def test_a_model_that_fits() -> None:
    assert misfits() == {}
    assert misfits(parallelism=with_stages()) == {}
    assert misfits("tied") == {}


def test_a_parameter_of_two_stages() -> None:
    found = misfits("tied", parallelism=with_stages())
    assert list(found) == ["parallelism.pipeline_parallel_degree"]
    assert "share the parameter output.weight" in found.popitem()[1]


def test_a_stage_whose_only_parameter_is_shared() -> None:
    """Another module for it would not help."""
    parts = [["tok_embeddings", *(f"layers.{i}" for i in range(4))], ["output"]]
    stages = replace(with_stages(), module_fqns_per_model_part=parts)
    assert "share the parameter output.weight" in str(
        misfits("tied", parallelism=stages)
    )
    assert misfits(parallelism=stages) == {}


def test_a_parameter_of_no_stage() -> None:
    assert misfits("own") == {}
    found = misfits("own", parallelism=with_stages())
    assert list(found) == ["parallelism.pipeline_parallel_degree"]
    assert "no module of a stage holds the parameter positions" in found.popitem()[1]


class Activated(nn.Module):
    """Ends with a module that has no parameter; no ``layers``."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.first = nn.Embedding(16, 4)
        self.last = nn.Linear(4, 16)
        self.act = nn.Tanh()


def test_a_stage_without_modules_or_parameters() -> None:
    spec = replace(get_train_spec("mine"), model_cls=Activated)
    register_train_spec("activated", spec)
    found = misfits(name="activated", parallelism=with_stages())
    assert "stage 1 of 2 would have none of the modules first, last, act" in str(found)
    assert "module_fqns_per_model_part" in str(found)

    def parts(*given: list[str]) -> dict[str, str]:
        stages = replace(with_stages(), module_fqns_per_model_part=list(given))
        return misfits(name="activated", parallelism=stages)

    assert "pipeline rank 1 would have no parameter" in str(
        parts(["first", "last"], ["act"])
    )
    assert parts(["first"], ["last", "act"]) == {}


@pytest.mark.parametrize(
    "compile_section",
    [Compile(), Compile(enable=True, components=["loss"])],
    ids=["off", "loss"],
)
def test_a_memory_budget_that_nothing_can_keep(compile_section: Compile) -> None:
    ac = ActivationCheckpoint(mode="memory_budget")
    found = misfits(activation_checkpoint=ac, compile=compile_section)
    assert list(found) == ["activation_checkpoint.mode"]
    message = found.popitem()[1]
    assert "memory_budget needs compile.enable" in message
    assert 'none, full and selective (a number or "op") fit' in message
    assert misfits(activation_checkpoint=ac, compile=Compile(enable=True)) == {}


@pytest.mark.parametrize(
    ("name", "flavor", "part", "fits"),
    [
        ("mine", "plain", "layers", None),
        ("mine", "plain", "layers.", None),
        (
            "llama3",
            "debugmodel",
            "feed_forward",
            "w1, feed_forward.w2, feed_forward.w3",
        ),
        ("llama3", "debugmodel", "attention", "attention.wq"),
    ],
)
def test_names_of_operations_that_are_no_products(
    name: str, flavor: str, part: str, fits: str | None
) -> None:
    by_operation = ActivationCheckpoint(
        selective_ac_option="op",
        per_op_sac_force_recompute_mm_shapes_by_fqns=["w2", part],
    )
    found = misfits(flavor, name=name, activation_checkpoint=by_operation)
    if fits is None:  # each layer is a linear module
        assert found == {}
        return
    assert list(found) == [
        "activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns"
    ]
    message = found.popitem()[1]
    assert f"found one in 'layers.0.{part}" in message
    assert fits in message


@pytest.mark.parametrize("lacking", ["build_validator_fn", "build_tokenizer_fn"])
def test_validation_without_what_it_needs(lacking: str) -> None:
    own: Any = {lacking: None, "build_dataloader_fn": lambda **_: []}
    spec = replace(get_train_spec("mine"), **own)
    register_train_spec("lacking", spec)
    validation = Validation(enable=True, seq_len=8)
    found = misfits(name="lacking", validation=validation)
    assert list(found) == ["validation.enable"]
    assert f"TrainSpec has no {lacking}" in found.popitem()[1]
    assert misfits(name="lacking") == misfits(validation=validation) == {}


def test_text_without_a_tokenizer() -> None:
    spec = replace(get_train_spec("mine"), build_tokenizer_fn=None)
    register_train_spec("lacking", spec)
    found = misfits(name="lacking")
    assert list(found) == ["training.dataset"]
    assert "c4_test is text, and the model's TrainSpec has no" in found.popitem()[1]
    assert misfits(name="lacking", comm=Comm(mode="fake_backend")) == {}


def test_tensor_parallelism_needs_a_plan_that_fits() -> None:
    divided = replace(JobConfig().parallelism, tensor_parallel_degree=2)
    found = misfits(parallelism=divided)
    assert list(found) == ["parallelism.tensor_parallel_degree"]
    assert "tensor_parallel_plan({" in found.popitem()[1]
    styles = {"layers.*": ColwiseParallel(output_layouts=Replicate())}
    spec = replace(get_train_spec("mine"), parallelize_fn=tensor_parallel_plan(styles))
    register_train_spec("styled", spec)
    assert misfits(name="styled", parallelism=divided) == {}


def test_a_model_in_cpp_has_a_plan_of_its_own() -> None:
    spec = replace(get_train_spec("llama3"), parallelize_fn=tensor_parallel_plan({}))
    register_train_spec("cpp", spec)
    divided = replace(JobConfig().parallelism, tensor_parallel_degree=2)
    found = misfits("debugmodel", name="cpp", parallelism=divided)
    assert list(found) == ["model.name"]
    assert "C++ ones have a plan of their own" in found.popitem()[1]


def test_a_backend_that_is_not_there() -> None:
    found = misfits(compile=Compile(enable=True, backend="nvcc"))
    assert list(found) == ["compile.backend"]


def test_validation_needs_what_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Validation(enable=True)
    assert misfits(validation=asked) == {}
    spec = replace(get_train_spec("mine"), build_validator_fn=None)
    monkeypatch.setitem(train_spec._registered, "mine", spec)
    assert misfits() == {}
    assert "has no build_validator_fn" in misfits(validation=asked)["validation.enable"]


def test_the_model_is_that_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """Its arguments may depend on the configuration."""
    lengths = []

    @dataclass
    class OfRun(Args):
        length: int = 0

        def update_from_config(self, job_config: Any) -> None:
            self.length = job_config.training.seq_len
            logger.warning("said when it is built")

    class Seen(Tied):
        def __init__(self, args: OfRun) -> None:
            super().__init__(args)
            lengths.append(args.length)

    spec = replace(
        get_train_spec("mine"), model_cls=Seen, model_args={"plain": OfRun()}
    )
    register_train_spec("of_run", spec)
    assert misfits(name="of_run", parallelism=with_stages()) == {}
    assert caplog.records == []
    assert lengths == [JobConfig().training.seq_len]


def test_building_for_the_check_allocates_nothing() -> None:
    devices = []

    class Seen(Tied):
        def __init__(self, args: Args) -> None:
            super().__init__(args)
            devices.append(self.output.weight.device)

    spec = replace(get_train_spec("mine"), model_cls=Seen)
    register_train_spec("seen", spec)
    assert misfits(name="seen", compile=Compile(enable=True)) == {}
    assert devices == [torch.device("meta")]
