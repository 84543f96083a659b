"""How models and microbatches are divided for pipeline parallelism."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from torchtitan_cpp.config import JobConfig, read_config
from torchtitan_cpp.nn.stages import keep_modules, shared_between, stage_view
from torchtitan_cpp.pipeline import (
    Misfit,
    ModuleNames,
    modules_of,
    plan_pipeline,
    split_modules,
)


def names(layers: int, *, one_output: bool = False) -> ModuleNames:
    return ModuleNames(
        inputs=("tok_embeddings",),
        layers=tuple(f"layers.{i}" for i in range(layers)),
        outputs=("norm", "output"),
        one_output=one_output,
    )


def config(*flags: str) -> JobConfig:
    given = {flag.partition("=")[0] for flag in flags}
    defaults = {
        "--parallelism.pipeline_parallel_degree": "2",
        "--training.local_batch_size": "8",
    }
    rest = [f"{name}={value}" for name, value in defaults.items() if name not in given]
    return read_config([*rest, *flags]).config


def lengths(parts: tuple[tuple[str, ...], ...]) -> list[int]:
    return [sum(name.startswith("layers.") for name in part) for part in parts]


@pytest.mark.parametrize(
    ("stages", "layers", "weights", "expected"),
    [
        (1, 3, (1, 1), [3]),
        (2, 6, (1, 1), [3, 3]),
        (4, 6, (1, 1), [1, 2, 2, 1]),
        (4, 7, (1, 1), [2, 2, 2, 1]),
        (2, 3, (2, 2), [2, 1]),
        (3, 6, (0, 0), [2, 2, 2]),
    ],
)
def test_layers_are_spread_evenly_with_embedding_and_output_counted(
    stages: int, layers: int, weights: tuple[int, int], expected: list[int]
) -> None:
    parts = split_modules(stages, names(layers), *weights)
    assert lengths(parts) == expected
    assert [name for part in parts for name in part] == list(names(layers).all)


def test_accumulated_batches_are_one_schedule_where_memory_allows() -> None:
    merged = plan_pipeline(config(), names(6), accumulation=3)
    assert (merged.rounds, merged.schedule.num_microbatches) == (1, 24)
    gpipe = config("--parallelism.pipeline_parallel_schedule=gpipe")
    repeated = plan_pipeline(gpipe, names(6), accumulation=3)
    assert (repeated.rounds, repeated.schedule.num_microbatches) == (3, 8)
    assert merged.num_microbatches == repeated.num_microbatches == 24


def test_a_v_shaped_schedule_has_first_and_last_stage_on_the_first_rank() -> None:
    flag = "--parallelism.pipeline_parallel_schedule=ZBVZeroBubble"
    pipeline = plan_pipeline(config(flag), names(6))
    assert pipeline.rank_of_stage == [0, 1, 1, 0]
    assert lengths(pipeline.modules) == [1, 2, 2, 1]


def test_validation_has_microbatches_of_its_own_number() -> None:
    flags = ("--validation.enable", "--validation.local_batch_size=4")
    size = "--parallelism.pipeline_parallel_microbatch_size=2"
    pipeline = plan_pipeline(config(*flags, size), names(6))
    assert pipeline.schedule.num_microbatches == 4
    assert pipeline.evaluation.num_microbatches == 2


CSV = "0F0,0F1,,0B0,,0B1\n,1F0,1B0,1F1,1B1,\n"


def test_a_schedule_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "schedule.csv"
    path.write_text(CSV)
    flags = (
        f"--parallelism.pipeline_parallel_schedule_csv={path}",
        "--training.local_batch_size=2",
    )
    pipeline = plan_pipeline(config(*flags), names(6), accumulation=2)
    assert pipeline.rank_of_stage == [0, 1] and pipeline.rounds == 2


P = "parallelism."


@pytest.mark.parametrize(
    ("flags", "field", "message"),
    [
        (
            ["pipeline_parallel_microbatch_size=3"],
            "pipeline_parallel_microbatch_size",
            "expected a divisor of training.local_batch_size = 8, found 3",
        ),
        (
            ["pipeline_parallel_schedule=1F2B"],
            "pipeline_parallel_schedule",
            "Interleaved1F1B",
        ),
        (
            ["pipeline_parallel_schedule=1FF1B"],
            "pipeline_parallel_schedule",
            "DualPipeV; did you mean '1F1B'?",
        ),
        (
            ["pipeline_parallel_layers_per_stage=3"],
            "pipeline_parallel_layers_per_stage",
            "8 layers (embedding and output counted in) by 3 a stage are 3 stages, not "
            "a multiple of pipeline_parallel_degree = 2; expected one of 4, 5, 6, 7",
        ),
        (
            ["pipeline_parallel_layers_per_stage=2"],
            "pipeline_parallel_layers_per_stage",
            "the schedule 1F1B takes 1 stages a rank, but 2 makes 2, which "
            "Interleaved1F1B, ",
        ),
        (
            ["pipeline_parallel_degree=9"],
            "pipeline_parallel_degree",
            "expected at most 8 stages for 6 layers",
        ),
        (
            ["pipeline_parallel_degree=1000000000000"],
            "pipeline_parallel_degree",
            "embedding and output counted as 1 and 1, found 1000000000000",
        ),
        (
            ["pipeline_parallel_first_stage_less_layers=8"],
            "pipeline_parallel_first_stage_less_layers",
            "expected at most 7, the layers of the smallest of 2 stages, found 8",
        ),
        (
            ["pipeline_parallel_first_stage_less_layers=99"],
            "pipeline_parallel_first_stage_less_layers",
            "expected at most 7, the layers of the smallest of 2 stages, found 99",
        ),
        (
            ["pipeline_parallel_schedule_csv=nowhere.csv"],
            "pipeline_parallel_schedule_csv",
            "nowhere.csv cannot be read",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_field(
    flags: list[str], field: str, message: str
) -> None:
    given = config(*(f"--{P}{flag}" for flag in flags))
    with pytest.raises(Misfit) as raised:
        plan_pipeline(given, names(6))
    assert raised.value.field == P + field
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0X0\n1F0,1B0\n", "row 1, column 2"),
        (CSV, "local_batch_size / pipeline_parallel_microbatch_size is 8"),
        ("0F0,0B0\n", "expected a row for each of pipeline_parallel_degree = 2"),
    ],
)
def test_a_broken_file_is_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "schedule.csv"
    path.write_text(text)
    flag = f"--parallelism.pipeline_parallel_schedule_csv={path}"
    with pytest.raises(Misfit, match="schedule_csv") as raised:
        plan_pipeline(config(flag), names(6))
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([["tok_embeddings"], ["layers.0", "norm", "output"]], "missing: layers.1"),
        ([["tok_embeddings", "layer.0"], ["layers.1"]], "did you mean 'layers.0'"),
        ([["layers.0"], ["tok_embeddings"]], "missing: layers.1, norm, output"),
        (
            [["tok_embeddings", "layers.1"], ["layers.0", "norm", "output"]],
            "twice or not in the order",
        ),
        (
            [["tok_embeddings", "layers.0", "layers.1", "norm"], ["output"]],
            "expected norm and output together in the last part",
        ),
        ([["tok_embeddings"]], "expected a multiple of pipeline_parallel_degree = 2"),
    ],
)
def test_parts_that_are_not_the_model_are_told(
    given: list[list[str]], message: str
) -> None:
    base = config()
    object.__setattr__(base.parallelism, "module_fqns_per_model_part", given)
    with pytest.raises(Misfit) as raised:
        plan_pipeline(base, names(2, one_output=True))
    assert raised.value.field == P + "module_fqns_per_model_part"
    assert message in raised.value.message


def test_layers_per_stage_beside_named_parts_are_refused() -> None:
    base = config("--parallelism.pipeline_parallel_layers_per_stage=1")
    parts = [["tok_embeddings", "layers.0"], ["layers.1", "norm", "output"]]
    object.__setattr__(base.parallelism, "module_fqns_per_model_part", parts)
    with pytest.raises(Misfit, match="has no effect with module_fqns") as raised:
        plan_pipeline(base, names(2, one_output=True))
    assert raised.value.field == P + "pipeline_parallel_layers_per_stage"


class Chain(nn.Module):
    """A model whose stages may lack any child."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings: nn.Module | None = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm: nn.Module | None = nn.LayerNorm(4)
        self.output: nn.Module | None = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tok_embeddings(x) if self.tok_embeddings is not None else x
        for layer in self.layers:
            h = layer(h)
        h = self.norm(h) if self.norm is not None else h
        return self.output(h) if self.output is not None else h


def test_stages_of_a_module_keep_their_names_and_share_its_children() -> None:
    model = Chain()
    assert modules_of(model) == ModuleNames(
        inputs=("tok_embeddings",),
        layers=("layers.0", "layers.1", "layers.2"),
        outputs=("norm", "output"),
        one_output=False,
    )
    x = torch.tensor([[1, 2]])
    expected = model(x)
    first = stage_view(model, {"tok_embeddings", "layers.0"})
    second = stage_view(model, {"layers.1", "layers.2", "norm", "output"})
    assert torch.equal(second(first(x)), expected)
    assert [name for name, _ in second.named_parameters()][:2] == [
        "layers.1.weight",
        "layers.1.bias",
    ]
    assert dict(second.named_modules())["layers.1"] is model.layers[1]
    keep_modules(model, {"layers.1"})
    assert [name for name, _ in model.named_parameters()] == [
        "layers.1.weight",
        "layers.1.bias",
    ]


def test_a_parameter_of_two_stages_is_found() -> None:
    model = Chain()
    stages = [
        ("tok_embeddings", "layers.0", "layers.1"),
        ("layers.2", "norm", "output"),
    ]
    assert shared_between(model, stages) is None
    model.output.weight = model.tok_embeddings.weight  # type: ignore[union-attr]
    assert shared_between(model, stages) == "output.weight"
