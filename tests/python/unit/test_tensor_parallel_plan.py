"""What a plan of tensor parallelism may say of a model, and what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import styled_models
import torch
import torch.distributed.tensor as torch_tensor
from styled_models import SEQUENCE, WHOLE, Args, Plan, Styled
from torch import nn
from torch.distributed.tensor import parallel as torch_parallel

from torchtitan_cpp.config import read_config
from torchtitan_cpp.tensor_parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleInputOutput,
    PrepareModuleOutput,
    Replicate,
    RowwiseParallel,
    SequenceParallel,
    Shard,
    tensor_parallel_plan,
)
from torchtitan_cpp.tensor_parallel.misfits import tensor_misfits
from torchtitan_cpp.tensor_parallel.placement import place

DEGREE = "parallelism.tensor_parallel_degree"

ARGS = Args()


def misfits(
    plan: Plan | None,
    ranks: int = 2,
    *flags: str,
    model: nn.Module | None = None,
    args: Args = ARGS,
) -> dict[str, str]:
    config = read_config([f"--{DEGREE}={ranks}", *flags]).config
    given = None if plan is None else tensor_parallel_plan(plan)
    return tensor_misfits(model or Styled(args), given, config, args)


@pytest.mark.parametrize("plan", [WHOLE, SEQUENCE])
def test_plans_that_fit(plan: Plan) -> None:
    assert misfits(plan) == {}


def test_a_star_stands_for_one_part_of_a_name() -> None:
    plan = tensor_parallel_plan({"layers.*.attention.w[qk]": ColwiseParallel()})
    styled, problems = plan.match(Styled(Args()))
    assert problems == []
    assert [each.name for each in styled] == [
        f"layers.{i}.attention.{name}" for i in (0, 1) for name in ("wq", "wk")
    ]
    assert plan.match(Styled(Args(num_layers=0)))[1]
    assert tensor_parallel_plan({"*.wq": SequenceParallel()}).match(Styled(Args()))[1]


def test_what_the_styles_divide_and_sum() -> None:
    styled, _ = tensor_parallel_plan(SEQUENCE).match(Styled(Args(num_layers=1)))
    placement = place(styled)
    assert placement.dims["tok_embeddings.weight"] == 0
    assert placement.dims["layers.0.attention.wq.weight"] == 0
    assert placement.dims["layers.0.attention.wq.bias"] == 0
    assert placement.dims["layers.0.attention.wo.weight"] == 1
    assert "layers.0.attention.wo.bias" not in placement.dims
    assert placement.summed == {
        *(f"layers.0.attention.{n}" for n in ("q_norm.weight", "q_norm.bias")),
        *(f"layers.0.attention_norm.{n}" for n in ("weight", "bias")),
        *("layers.0.attention.wo.bias", "layers.0.feed_forward.w2.bias"),
        *("layers.0.ffn_norm.weight", "norm.weight", "norm.bias"),
    }
    whole, _ = tensor_parallel_plan(WHOLE).match(Styled(Args(num_layers=1)))
    assert "layers.0.attention.wo.bias" not in place(whole).summed
    columns, _ = tensor_parallel_plan({"tok_embeddings": ColwiseParallel()}).match(
        Styled(Args())
    )
    assert place(columns).dims["tok_embeddings.weight"] == 1


class OwnLinear(nn.Linear):
    def forward(self, x: Any) -> Any:
        return super().forward(x) + 1


class Others(nn.Module):
    """Modules that styles cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.own = OwnLinear(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4)])
        self.bounded = nn.Embedding(4, 4, max_norm=1.0)
        self.small = nn.Embedding(4, 4)
        self.head = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.norm.inner = nn.Linear(4, 4)


HEAD = ColwiseParallel(use_local_output=False)

REFUSED: list[tuple[Plan, int, str]] = [
    (
        {"layers.*.own": SequenceParallel()},
        2,
        "'layers.*.own' is no module of Others; did you mean 'layers.*'?",
    ),
    ({"qqqqq": SequenceParallel()}, 2, "'qqqqq' is no module of Others"),
    (
        {"he*": ColwiseParallel(), "head": RowwiseParallel()},
        2,
        "'he*' and 'head': both head",
    ),
    (
        {"norm": RowwiseParallel()},
        2,
        "norm: RowwiseParallel takes nn.Linear or nn.Embedding, found LayerNorm",
    ),
    (
        {"own": ColwiseParallel()},
        2,
        "own: ColwiseParallel takes nn.Linear with its own forward, but OwnLinear has "
        "another one",
    ),
    (
        {"bounded": RowwiseParallel()},
        2,
        "bounded: RowwiseParallel cannot take an nn.Embedding with max_norm",
    ),
    (
        {"small": RowwiseParallel()},
        3,
        "small: num_embeddings = 4 leaves nothing for the last of 3 ranks",
    ),
    (
        {"head": HEAD},
        3,
        "head: out_features = 4 leaves nothing for the last of 3 ranks",
    ),
    (
        {"layers.0": HEAD},
        2,
        "layers.0: use_local_output=False is for the module that gives the prediction",
    ),
    (
        {"head": HEAD, "norm.inner": HEAD},
        2,
        "head and norm.inner: use_local_output=False is for the one module",
    ),
    (
        {"norm": SequenceParallel(), "norm.inner": ColwiseParallel()},
        2,
        "norm.inner: SequenceParallel of norm is for it already",
    ),
    (
        {"head": ColwiseParallel(), "layers.0": RowwiseParallel()},
        3,
        "expected a divisor of head.out_features = 4 (1, 2, 4), found 3",
    ),
]


@pytest.mark.parametrize(("plan", "ranks", "message"), REFUSED)
def test_what_does_not_fit_is_told(plan: Plan, ranks: int, message: str) -> None:
    found = misfits(plan, ranks, model=Others())
    assert list(found) == [DEGREE]
    assert f"TrainSpec.parallelize_fn: {message}" in found[DEGREE]


def test_sizes_that_are_divided_give_the_degrees_that_fit() -> None:
    assert misfits(WHOLE, 3)[DEGREE] == (
        "TrainSpec.parallelize_fn: expected a divisor of "
        "layers.0.attention.wk.out_features = 8, "
        "layers.0.feed_forward.w1.out_features = 12, "
        "layers.0.attention.wq.out_features = 16 (1, 2, 4), found 3"
    )


FOUR_HEADS = Args(hidden=16, vocab_size=24)
"""And half as many of keys: eight ranks can have equal columns, but not heads."""


def test_a_forward_that_needs_whole_heads_gives_the_degree_that_fits() -> None:
    model = Styled(FOUR_HEADS)
    before = {name: each.shape for name, each in model.named_parameters()}
    found = misfits(WHOLE, 8, model=model, args=FOUR_HEADS)[DEGREE]
    assert found.startswith(
        "TrainSpec.parallelize_fn: forward of Styled cannot compute with what 8 ranks "
        "have of its modules, e.g. a part of a head: shape '[8, 256, -1, 4]' is "
        f"invalid for input of size 4096 ({styled_models.__file__}:"
    )
    assert found.endswith("); 2 fits")
    assert {name: each.shape for name, each in model.named_parameters()} == before
    no_attention = {k: v for k, v in WHOLE.items() if "attention" not in k}
    assert misfits(no_attention, 8, model=model, args=FOUR_HEADS) == {}


class OnNumbers(Styled):
    """Meta tensors have no numbers to look at."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.clamp(max=int(x.max())))


def test_a_forward_that_is_not_for_meta_is_not_judged() -> None:
    assert misfits(WHOLE, 8, model=OnNumbers(FOUR_HEADS), args=FOUR_HEADS) == {}


def test_a_weight_under_two_names_is_divided_alike() -> None:
    tied = Styled(Args(tied=True))
    assert misfits(WHOLE, model=tied) == {}
    plan = {k: v for k, v in WHOLE.items() if k != "output"}
    assert (
        "tok_embeddings.weight and output.weight are one parameter"
        in misfits(plan, model=tied)[DEGREE]
    )
    plan = {**WHOLE, "output": RowwiseParallel()}
    assert "one parameter" in misfits(plan, model=tied)[DEGREE]


def test_a_degree_needs_a_plan() -> None:
    assert misfits(None, 1) == {}
    found = misfits(None, 2)
    assert "TrainSpec.parallelize_fn=tensor_parallel_plan({" in found[DEGREE]


def test_exchanges_are_not_overlapped_yet() -> None:
    found = misfits(WHOLE, 2, "--parallelism.enable_async_tensor_parallel")
    assert list(found) == ["parallelism.enable_async_tensor_parallel"]


def test_a_style_of_torch_s_names_its_replacement() -> None:
    plan: Mapping[str, Any] = {"output": torch_parallel.ColwiseParallel()}
    with pytest.raises(ValueError, match=r"torch\.distributed.*; use torchtitan_cpp\."):
        tensor_parallel_plan(plan)
    with pytest.raises(ValueError, match="'output': expected a style.*found builtins"):
        tensor_parallel_plan({"output": "colwise"})  # type: ignore[dict-item]


def test_placements_of_torch_s_are_layouts() -> None:
    style = RowwiseParallel(
        input_layouts=torch_tensor.Replicate(),  # type: ignore[arg-type]
        output_layouts=torch_tensor.Shard(1),  # type: ignore[arg-type]
    )
    assert style == RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))


@pytest.mark.parametrize(
    ("style", "options", "message"),
    [
        (ColwiseParallel, {"output_layouts": 1}, "Replicate.. or Shard.dim., found 1"),
        (
            ColwiseParallel,
            {"output_layouts": Replicate(), "use_local_output": False},
            "use_local_output=False is for a prediction with output_layouts=Shard",
        ),
        (PrepareModuleInput, {"input_layouts": Shard(1)}, "needs a desired one"),
        (
            PrepareModuleInput,
            {"input_kwarg_layouts": {"x": Shard(1)}},
            "the same names, found .'x'. and ..",
        ),
        (
            PrepareModuleOutput,
            {"output_layouts": (Shard(1), None), "desired_output_layouts": Shard(1)},
            "needs a desired one",
        ),
        (
            PrepareModuleInputOutput,
            {
                "input_layouts": Shard(1),
                "output_layouts": Shard(1),
                "desired_output_layouts": Shard(1),
            },
            "PrepareModuleInput: each layout needs a desired one",
        ),
    ],
)
def test_a_style_that_contradicts_itself(
    style: type[ParallelStyle], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        style(**options)
