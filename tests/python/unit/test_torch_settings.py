"""The settings of optimizers as torchtitan reads them from checkpoints."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
from test_own_optimizers import laid_out

from torchtitan_cpp.torch_settings import torch_settings


def trainer_of(make: Any, **more: Any) -> Any:
    module, optimizers = laid_out(make)
    world = SimpleNamespace(groups={"batch": SimpleNamespace(size=3)})
    return SimpleNamespace(
        model=SimpleNamespace(module=module), optimizers=optimizers, world=world, **more
    )


def test_each_parameter_has_the_settings_of_its_own_group() -> None:
    def make(parameters: Any) -> Any:
        weight, bias = parameters
        groups = [{"params": [weight], "lr": torch.tensor(0.5)}, {"params": [bias]}]
        return torch.optim.SGD(groups, lr=0.25, momentum=0.9)

    scheduler = SimpleNamespace(base_lrs=[1.0, 0.5])
    schedulers = SimpleNamespace(schedulers=[scheduler])
    settings = torch_settings(trainer_of(make, lr_schedulers=schedulers))
    weight, bias = (settings.param_groups[name] for name in ("weight", "bias"))
    assert (weight["lr"], bias["lr"]) == (0.5, 0.25)
    plain = torch.optim.SGD([torch.zeros(1)], lr=0.25, momentum=0.9).param_groups[0]
    assert dict(bias) == {k: v for k, v in plain.items() if k != "params"}
    assert json.loads(json.dumps(weight)) == weight
    assert settings.rates == [0.5, 0.25] and settings.initial_rates == [1.0, 0.5]
    assert settings.data_ranks == 3


def test_without_a_scheduler_of_torchs_kind_the_rates_are_the_peaks() -> None:
    def make(parameters: Any) -> Any:
        return [torch.optim.AdamW(parameters, lr=0.1)]

    settings = torch_settings(trainer_of(make, lr_schedulers=object()))
    assert settings.rates == settings.initial_rates == [0.1]
    assert settings.param_groups["weight"]["betas"] == (0.9, 0.999)
