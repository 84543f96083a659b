"""The state of a user's optimizer as checkpoints hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from torchtitan_cpp.own_optimizers import OwnOptimizers, as_container

Make = Callable[[Iterable[nn.Parameter]], Any]


class Shard:
    """What an optimizer needs of this rank's rows."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name = name
        self.value = parameter
        self.gradient = torch.full_like(parameter, 0.5)


def laid_out(make: Make) -> tuple[nn.Module, OwnOptimizers]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    shards = [Shard(name, p) for name, p in module.named_parameters()]
    group = type("Group", (), {"shards": shards})()
    object.__setattr__(module, "_parameter_groups", (group,))
    optimizers = as_container(make(module.parameters()), module)
    assert isinstance(optimizers, OwnOptimizers)
    return module, optimizers


def sgd(parameters: Iterable[nn.Parameter]) -> Any:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5)


def adam(parameters: Iterable[nn.Parameter]) -> Any:
    return [torch.optim.AdamW(parameters, lr=0.1)]


@pytest.mark.parametrize("make", [sgd, adam])
def test_loaded_state_continues_the_run(make: Make) -> None:
    module, optimizers = laid_out(make)
    for _ in range(3):
        optimizers.update()
    saved = {
        key: {name: each.clone() for name, each in by_name.items()}
        for key, by_name in optimizers.state().items()
    }
    numbers = optimizers.numbers()
    middle = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizers.update()

    other, resumed = laid_out(make)
    other.load_state_dict(middle)
    resumed.make_state()
    for key, by_name in resumed.state().items():
        for name, tensor in by_name.items():
            tensor.copy_(saved[key][name])
    resumed.finish_load(numbers)
    resumed.update()
    for (name, found), expected in zip(
        other.named_parameters(), module.parameters(), strict=True
    ):
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("make", [sgd, adam])
def test_a_run_without_a_checkpoint_starts_without_state(make: Make) -> None:
    module, optimizers = laid_out(make)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizers.make_state()
    optimizers.finish_load(None)
    assert optimizers.learning_rate == 0.1
    assert optimizers.state() == {} and optimizers.numbers() == {}
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None


def test_a_replaced_parameter_is_refused() -> None:
    module, optimizers = laid_out(sgd)
    module.weight = nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="parameter weight of the model was replaced"):
        optimizers.update()


def test_the_state_of_an_unknown_kind_of_optimizer_cannot_be_saved() -> None:
    class Sign:
        def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
            self.param_groups = [{"params": list(parameters), "lr": 1.0}]

        def step(self) -> None:
            for parameter in self.param_groups[0]["params"]:
                parameter.data.sub_(parameter.grad.sign())

    _, optimizers = laid_out(Sign)
    optimizers.update()
    with pytest.raises(ValueError, match=r"not a torch\.optim\.Optimizer, but Sign"):
        optimizers.make_state()


def test_something_that_is_no_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"build_optimizers_fn: expected an optimizer"):
        laid_out(lambda parameters: object())
