"""Layers that run again before their backward, as torch.utils.checkpoint means it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from styled_models import WHOLE, Layout, run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointError

from torchtitan_cpp import _C
from torchtitan_cpp.nn.recomputation import Recomputation, RecomputeOptions
from torchtitan_cpp.nn.selective import contexts_by_operation, recomputed_shapes


class Layer(nn.Module):
    """Four products without bias, of two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, bias=False)
        self.second = nn.Linear(6, 4, bias=False)
        self.third = nn.Linear(4, 6, bias=False)
        self.fourth = nn.Linear(6, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.second(self.first(x).tanh()).exp()
        return self.fourth(torch.nn.functional.dropout(self.third(h), 0.3)).sin()


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def products(self) -> int:
        return self.calls.count("aten.mm.default")


def gradients(
    layer: nn.Module, options: RecomputeOptions | None
) -> tuple[list[torch.Tensor], int]:
    """Of the input and the weights, and the products of the second run."""
    x = torch.linspace(0, 1, 12, dtype=torch.float64).view(3, 4).requires_grad_()
    layer.zero_grad()
    torch.manual_seed(3)
    products = 0
    if options is None:
        y = layer(x)
    else:
        again = Recomputation("layers.0", options)
        with again.first_run():
            y = layer(x)
        torch.manual_seed(3)
        with Count() as count:
            again.second_run(lambda: layer(x))
        products = count.products
    y.square().sum().backward()
    assert x.grad is not None
    return [
        x.grad,
        *(p.grad for p in layer.parameters() if p.grad is not None),
    ], products


@pytest.fixture
def layer() -> nn.Module:
    torch.manual_seed(5)
    return Layer().double()


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("debug", [False, True])
def test_gradients_are_bitwise_those_of_one_run(
    layer: nn.Module, early_stop: bool, debug: bool
) -> None:
    expected, _ = gradients(layer, None)
    found, products = gradients(
        layer, RecomputeOptions(early_stop=early_stop, debug=debug)
    )
    assert all(map(torch.equal, found, expected))
    assert products == 4


def test_an_early_stop_leaves_out_what_nothing_needs() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x.exp() @ x).neg()

    counts = []
    for early_stop in (False, True):
        again = Recomputation("layers.0", RecomputeOptions(early_stop=early_stop))
        x = torch.ones(2, 2, requires_grad=True)
        with again.first_run():
            y = function(x)
        with Count() as count:
            again.second_run(lambda x=x: function(x))
        counts.append(count.calls.count("aten.neg.default"))
        y.sum().backward()
    assert counts == [1, 0]


@pytest.mark.parametrize(
    ("modules", "recomputed"),
    [
        ([], 2),  # the 2nd and the 4th
        (["first"], 3),  # and the third, which has its shape: of two one is kept
        (["first", "second"], 4),
        (["layers.0.fourth"], 3),
        (["moe.router.gate"], 2),
    ],
)
def test_by_operation_every_second_product_is_kept(
    layer: nn.Module, modules: list[str], recomputed: int
) -> None:
    shapes = recomputed_shapes("layers.0", layer, modules, {})
    options = RecomputeOptions(make_contexts=contexts_by_operation(shapes))
    expected, _ = gradients(layer, None)
    found, products = gradients(layer, options)
    assert all(map(torch.equal, found, expected))
    assert products == recomputed


def test_by_operation_attention_is_kept() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x.sin(), x.cos(), x.exp())

    again = Recomputation(
        "layers.0",
        RecomputeOptions(make_contexts=contexts_by_operation(frozenset())),
    )
    x = torch.randn(1, 2, 4, 8, requires_grad=True)
    with again.first_run(), Count() as first:
        y = function(x)
    with Count() as second:
        again.second_run(lambda: function(x))
    y.sum().backward()
    name = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    assert name in first.calls
    assert name not in second.calls
    assert "aten.sin.default" in second.calls


def test_names_of_other_modules_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match="found one in 'layers.0', which is none"):
        recomputed_shapes("layers.0", layer, ["layers"], {})


def test_names_mean_the_weights_that_a_rank_multiplies_with(layer: nn.Module) -> None:
    pieces = {"layers.0.first.weight": (3, 4)}
    found = recomputed_shapes("layers.0", layer, ["first", "second"], pieces)
    assert found == {(4, 3), (6, 4)}


def changing(second: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    runs = []

    def function(x: torch.Tensor) -> torch.Tensor:
        runs.append(1)
        return x.exp().sin() if len(runs) == 1 else second(x)

    return function


@pytest.mark.parametrize(
    ("second", "check", "message"),
    [
        (
            lambda x: x[:1].exp().sin(),
            "default",
            r"another tensor 0: .*\(2, 2\).*\(1, 2",
        ),
        (lambda x: x.exp().sin(), "default", None),
        (lambda x: x[:1].exp().sin(), "none", None),
        (lambda x: x.exp(), "none", "saves 1 tensors, 2 the first time"),
        (lambda x: x.exp().sin().cos(), "default", "saves more tensors"),
    ],
)
def test_what_is_saved_is_checked(
    second: Callable[[torch.Tensor], torch.Tensor], check: str, message: str | None
) -> None:
    function = changing(second)
    again = Recomputation("layers.7", RecomputeOptions(determinism_check=check))
    x = torch.ones(2, 2, requires_grad=True)
    with again.first_run():
        function(x)
    if message is None:
        again.second_run(lambda: function(x))
    else:
        with pytest.raises(CheckpointError, match=message) as caught:
            again.second_run(lambda: function(x))
        assert str(caught.value).startswith("layers.7 runs again")
        assert "operation" not in str(caught.value)


def test_debug_tells_the_first_other_operation() -> None:
    function = changing(lambda x: x.cos()[:1])
    again = Recomputation("layers.7", RecomputeOptions(debug=True))
    x = torch.ones(2, 2, requires_grad=True)
    with again.first_run():
        function(x)
    with pytest.raises(
        CheckpointError, match=r"operation 0 was aten.exp.default and is"
    ):
        again.second_run(lambda: function(x))


def test_a_tensor_is_not_there_before_the_second_run() -> None:
    again = Recomputation("layers.7", RecomputeOptions())
    x = torch.ones(2, requires_grad=True)
    with again.first_run():
        y = x.exp()
    with pytest.raises(CheckpointError, match="before the backward reaches the layer"):
        y.sum().backward()


def test_less_is_kept_by_operation_than_without_and_nothing_in_full() -> None:
    memory = _C.core.cpu_memory()
    layer = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    x = torch.ones(128, 64, requires_grad=True)

    def kept(make: Callable[[], Recomputation | None]) -> int:
        again = make()
        before = memory.live
        if again is None:
            h = layer(x.sin()).sum()
        else:
            with again.first_run():
                h = layer(x.sin()).sum()
        live = memory.live - before
        assert h.requires_grad
        return live

    def by_operation() -> Recomputation:
        contexts = contexts_by_operation(frozenset())
        return Recomputation("layers.0", RecomputeOptions(make_contexts=contexts))

    none = kept(lambda: None)
    operation = kept(by_operation)
    full = kept(lambda: Recomputation("layers.0", RecomputeOptions()))
    size = x.nbytes
    assert none == pytest.approx(4 * size, abs=4096)  # inputs of the four products
    assert operation == pytest.approx(2 * size, abs=4096)
    assert full == pytest.approx(0, abs=4096)


@pytest.mark.parametrize("early_stop", [True, False])
def test_nothing_is_left_of_both_runs(early_stop: bool) -> None:
    """Both operations save their own results."""
    x = torch.ones(1000, requires_grad=True)
    gradient = torch.ones(1000)
    memory = _C.core.cpu_memory()
    before = memory.live
    for _ in range(3):
        options = RecomputeOptions(early_stop=early_stop)
        recomputation = Recomputation("layer", options)
        with recomputation.first_run():
            y = x.tanh().exp()
        recomputation.second_run(lambda: x.tanh().exp())
        (found,) = torch.autograd.grad(y, x, gradient)
        assert found[0] > 0
        del recomputation, y, found
    assert memory.live == before


@pytest.mark.parametrize("names", ["wq", "w1,wo"])
def test_linears_with_a_bias_may_be_named(names: str) -> None:
    prefix = "--activation_checkpoint."
    by_operation = (f"{prefix}mode=selective", f"{prefix}selective_ac_option=op")
    named = f"{prefix}per_op_sac_force_recompute_mm_shapes_by_fqns={names}"
    expected = run(Layout(plan=WHOLE, tp=1))
    found = run(Layout(plan=WHOLE, tp=1, flags=(*by_operation, named)))
    assert found.loss == expected.loss
    for name, gradient in expected.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name
