"""What torch's optimizers would hold of a run's configuration, for DCP folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from torchtitan_cpp.checkpoint import TorchSettings
from torchtitan_cpp.config.optimizer import Optimizer
from torchtitan_cpp.nn import parameter_groups
from torchtitan_cpp.own_optimizers import OwnOptimizers

if TYPE_CHECKING:
    from torchtitan_cpp.trainer import Trainer


def torch_settings(trainer: Trainer) -> TorchSettings:
    """Of the step to come."""
    module, optimizers = trainer.model.module, trainer.optimizers
    own_groups = next(iter(optimizers)).param_groups
    rates = [float(group["lr"]) for group in own_groups]
    schedulers = getattr(trainer.lr_schedulers, "schedulers", None)
    peaks = [float(rate) for rate in schedulers[0].base_lrs] if schedulers else rates
    groups: dict[str, Mapping[str, Any]] = {}
    if isinstance(optimizers, OwnOptimizers):
        names = {id(p): name for name, p in module.named_parameters()}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                held = {k: _plain(v) for k, v in group.items() if k != "params"}
                named = {names[id(p)]: held for p in group["params"] if id(p) in names}
                groups.update(named)
    else:
        made = param_group(trainer.job_config.optimizer)
        made |= {"lr": rates[0], "initial_lr": peaks[0]}
        for part in parameter_groups(module):
            groups.update({shard.name: made for shard in part.shards})
    return TorchSettings(
        param_groups=groups,
        initial_rates=peaks,
        rates=rates,
        data_ranks=int(trainer.world.groups["batch"].size),
    )


def param_group(config: Optimizer) -> dict[str, Any]:
    """The parameter group of torch's optimizer as torchtitan builds it."""
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[config.name]
    made = kind(
        [torch.zeros(1)],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        foreach=config.implementation == "foreach",
        fused=config.implementation == "fused",
    )
    return {k: v for k, v in made.param_groups[0].items() if k != "params"}


def _plain(value: Any) -> Any:
    """A number where an optimizer keeps a tensor of one element."""
    return value.item() if isinstance(value, torch.Tensor) else value
