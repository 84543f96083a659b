"""A plain nn.Module under the training step has the gradients of plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from toy_models import (
    LENGTH,
    Layout,
    Toy,
    assert_close,
    make,
    reference,
    run,
    squared_error,
    tokens_and_labels,
)

from torchtitan_cpp import _C
from torchtitan_cpp.nn.python_model import PythonModel
from torchtitan_cpp.own_optimizers import OwnOptimizers

LAYOUTS = [
    Layout(),
    Layout(microbatches=3),
    Layout(microbatches=2, recompute="full"),
    Layout(recompute="selective"),
    Layout(replicas=2, microbatches=3),
    Layout(shards=2, reshard="always"),
    Layout(shards=2, microbatches=3, recompute="full"),
    Layout(shards=2, microbatches=2, recompute="per_operation"),
    Layout(shards=3, microbatches=2),
    Layout(shards=3, reshard="never", recompute="selective"),
    Layout(shards=2, replicas=2, microbatches=3, recompute="full"),
]


def check(build: Callable[[], nn.Module], layout: Layout) -> None:
    expected = reference(build())
    outcome = run(build, layout)
    assert outcome.loss == pytest.approx(expected.loss, rel=1e-10)
    assert_close(outcome.gradients, expected.gradients, 1e-10)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_equal_plain_autograd(layout: Layout) -> None:
    check(make, layout)


@pytest.mark.parametrize("container", [nn.ModuleList, nn.ModuleDict])
@pytest.mark.parametrize("tied", [False, True])
def test_lists_dicts_and_tied_weights(container: type, tied: bool) -> None:
    def build() -> nn.Module:
        return make(container=container, tied=tied)

    check(build, Layout(shards=2, microbatches=2))


@pytest.mark.parametrize("skipped", [0, 2])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_layer_that_is_not_called_has_gradient_zero(
    skipped: int, recompute: str
) -> None:
    check(lambda: make(skipped=skipped), Layout(shards=2, recompute=recompute))


def test_a_layer_whose_result_does_not_matter_has_gradient_zero() -> None:
    class Ignoring(Toy):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            h = self.tokens(tokens)
            self.layers[0](h, more={"gate": h})
            h, _ = self.layers[1](h, more={"gate": h})
            self.layers[2](h, more={"gate": h})
            return self.output(h)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return Ignoring().double()

    check(build, Layout(shards=2, recompute="full"))


def test_a_weight_that_two_layers_share() -> None:
    def build() -> nn.Module:
        module = make()
        assert isinstance(module.layers, nn.ModuleList)
        module.layers[2].up = module.layers[0].up
        return module

    check(build, Layout(shards=2, microbatches=2, recompute="full"))


def test_a_module_without_layers_is_one_segment() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(17, 4), nn.Tanh(), nn.Linear(4, 17)).double()

    check(build, Layout(shards=2, microbatches=2))


def test_a_module_of_layers_only() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Embedding(17, 4), nn.Tanh(), nn.Linear(4, 17)
            )

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.layers(tokens)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return Chain().double()

    check(build, Layout(shards=2, microbatches=2, recompute="full"))


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_dropout_draws_the_same_numbers_when_a_layer_runs_again(recompute: str) -> None:
    module = make(dropout=0.5)
    torch.manual_seed(11)
    expected = reference(module)

    def build() -> nn.Module:
        made = make(dropout=0.5)
        torch.manual_seed(11)
        return made

    outcome = run(build, Layout(recompute=recompute))
    assert_close(outcome.gradients, expected.gradients, 1e-10)


@pytest.mark.parametrize("layout", [Layout(), Layout(shards=2)], ids=str)
def test_an_evaluation_runs_in_eval_mode_and_sees_all_ranks_rows(
    layout: Layout,
) -> None:
    expected = reference(make())
    outcome = run(lambda: make(dropout=0.5), layout)
    num_valid = int((tokens_and_labels()["labels"] != -100).sum())
    total = sum(outcome.evaluated)
    assert total == pytest.approx(expected.loss * num_valid, rel=1e-10)


def test_a_loss_of_ones_own() -> None:
    expected = reference(make(), loss_fn=squared_error)
    outcome = run(make, Layout(shards=2, microbatches=2), loss_fn=squared_error)
    assert_close(outcome.gradients, expected.gradients, 1e-10)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(steps=4, microbatches=2),
        Layout(steps=4, shards=2),
        Layout(steps=4, replicas=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("in_container", [False, True])
def test_an_optimizer_of_ones_own_moves_the_weights_as_on_one_process(
    layout: Layout, in_container: bool
) -> None:
    def sgd(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            module.parameters(), lr=0.3, momentum=0.9, weight_decay=0.1
        )

    def make_optimizer(
        module: nn.Module, applied: _C.parallel.Applied
    ) -> _C.optim.Optimizer:
        optimizer = sgd(module)
        given = [optimizer] if in_container else optimizer
        own = OwnOptimizers(given, module)
        return _C.optim.CalledOptimizer(
            [g.gradient for g in applied.groups], own.update
        )

    module = make()
    expected = reference(module, optimizer=sgd(module), steps=layout.steps)
    outcome = run(make, layout, make_optimizer=make_optimizer)
    assert_close(outcome.weights, expected.weights, 1e-9)


def test_an_optimizer_of_ones_own_gets_clipped_gradients() -> None:
    seen: list[float] = []

    def make_optimizer(
        module: nn.Module, applied: _C.parallel.Applied
    ) -> _C.optim.Optimizer:
        def update() -> None:
            gradients = [g.gradient for g in applied.groups]
            seen.append(float(torch.cat(gradients).norm()))

        return _C.optim.CalledOptimizer([g.gradient for g in applied.groups], update)

    run(make, Layout(), make_optimizer=make_optimizer, max_norm=0.25)
    assert seen == [pytest.approx(0.25, rel=1e-4)]


def test_an_optimizer_of_ones_own_is_not_called_for_a_gradient_that_is_not_finite() -> (
    None
):
    calls: list[int] = []

    def make_optimizer(
        module: nn.Module, applied: _C.parallel.Applied
    ) -> _C.optim.Optimizer:
        return _C.optim.CalledOptimizer([], lambda: calls.append(1))

    def infinite(prediction: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return prediction.sum() * float("inf")

    run(make, Layout(), make_optimizer=make_optimizer, loss_fn=infinite)
    assert not calls


class Wrong(Toy):
    """Misuses its layers in the way of ``fault``."""

    fault: str

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.tokens(tokens)
        more = {"gate": h}
        if self.fault == "twice":
            self.layers[0](h, more=more)
            self.layers[0](h, more=more)
        elif self.fault == "order":
            self.layers[1](h, more=more)
            self.layers[0](h, more=more)
        elif self.fault == "outside":
            h = h @ self.layers[0].down.weight
        return self.output(h)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("twice", r"segment layers\.0 is called a second time or out of order"),
        ("order", r"segment layers\.0 is called a second time or out of order"),
        ("outside", r"parameter layers\.0\.down\.weight is read outside of the call"),
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_use_of_layers_that_cannot_be_right_is_refused(
    fault: str, message: str, shards: int
) -> None:
    def build() -> nn.Module:
        module = Wrong().double()
        module.fault = fault
        return module

    with pytest.raises(ValueError, match=message):
        run(build, Layout(shards=shards))


def test_a_layer_that_returns_its_parameter_is_refused() -> None:
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 2))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.weight.t()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Leaky()])

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.layers[0](tokens).sum() + torch.zeros(*tokens.shape, 17)

    with pytest.raises(ValueError, match=r"layers\.0 returns a view of its own param"):
        run(lambda: Model().double(), Layout(shards=2))


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (nn.Parameter(torch.ones(2), requires_grad=False), "requires_grad=False"),
        (nn.Parameter(torch.ones(())), "expected at least one dim"),
        (nn.Parameter(torch.ones(2, dtype=torch.complex64)), "real floating-point"),
    ],
)
def test_a_parameter_that_cannot_be_trained_is_refused(
    parameter: nn.Parameter, message: str
) -> None:
    module = make()
    module.register_parameter("odd", parameter)
    with pytest.raises(ValueError, match=f"parameter odd: .*{message}"):
        PythonModel(module, squared_error)


def test_the_module_is_plain_again_after_a_step() -> None:
    modules: list[nn.Module] = []

    def build() -> nn.Module:
        modules.append(make())
        return modules[-1]

    run(build, Layout(steps=2))
    module = modules[0]
    assert all(type(p) is nn.Parameter for p in module.parameters())
    twin = copy.deepcopy(module)
    tokens = torch.zeros(2, LENGTH, dtype=torch.int64)
    torch.testing.assert_close(module(tokens), twin(tokens))
    expected = torch.autograd.grad(twin(tokens).sum(), list(twin.parameters()))
    found = torch.autograd.grad(module(tokens).sum(), list(module.parameters()))
    torch.testing.assert_close(found, expected)
