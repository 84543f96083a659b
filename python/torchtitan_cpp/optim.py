"""Optimizers: Adam and AdamW in C++ over the flat buffers of parameter groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.config import TORCH_DTYPE_MAP, state_dtype
from torchtitan_cpp.nn import parameter_groups

OPTIMIZER_NAMES = ("Adam", "AdamW")
"""What ``build_optimizers`` knows."""


class CoreOptimizer:
    """Adam or AdamW whose update is an action of the step's program.

    It has no ``step`` of its own: the program clips, checks that the gradient is
    finite and updates, in one pass over memory. ``param_groups`` is what learning rate
    schedulers write to.
    """

    def __init__(
        self,
        groups: Sequence[_C.nn.ParameterGroup],
        *,
        name: str,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        fused: bool,
        state_dtype: torch.dtype,
    ) -> None:
        self.groups = list(groups)
        self.param_groups: list[dict[str, Any]] = [{"lr": lr}]
        self.core = _C.optim.Adam(
            [(group.master, group.gradient) for group in groups],
            beta1=betas[0],
            beta2=betas[1],
            eps=eps,
            weight_decay=weight_decay,
            decoupled=name == "AdamW",
            fused=fused,
            state_dtype=state_dtype,
        )

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.param_groups[0]["lr"])

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Moments of this rank's pieces by name of the moment and of the parameter."""
        moments: dict[str, dict[str, torch.Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        for index, group in enumerate(self.groups):
            for name, flat in (
                ("exp_avg", self.core.exp_avg(index)),
                ("exp_avg_sq", self.core.exp_avg_sq(index)),
            ):
                views = group.shard_views(flat)
                for shard, view in zip(group.shards, views, strict=True):
                    moments[name][shard.name] = view
        return moments


class OptimizersContainer:
    """The optimizers of all model parts (torchtitan's name); one for a C++ model."""

    def __init__(self, optimizers: Sequence[CoreOptimizer]) -> None:
        self.optimizers = list(optimizers)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.optimizers[0].learning_rate

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """What is saved: by moment, then by parameter."""
        return self.optimizers[0].state()

    def __iter__(self) -> Iterator[CoreOptimizer]:
        return iter(self.optimizers)

    def __len__(self) -> int:
        return len(self.optimizers)


def build_optimizers(
    model_parts: Sequence[nn.Module],
    optimizer_config: Any,
    parallel_dims: Any,
    ft_manager: Any = None,
) -> OptimizersContainer:
    """The default of ``TrainSpec.build_optimizers_fn``.

    Args:
        model_parts: modules whose parameters lie in parameter groups.
        optimizer_config: the section ``optimizer``. A ``state_dtype`` of float32 is
            float64 where the parameters are float64.
    Raises:
        ValueError: for a name other than Adam or AdamW.
    """
    if optimizer_config.name not in OPTIMIZER_NAMES:
        raise ValueError(
            f"optimizer.name: expected {' or '.join(OPTIMIZER_NAMES)}, found "
            f"{optimizer_config.name!r}"
        )
    groups = [parameter_groups(part) for part in model_parts]
    return OptimizersContainer(
        [
            CoreOptimizer(
                part,
                name=optimizer_config.name,
                lr=optimizer_config.lr,
                betas=(optimizer_config.beta1, optimizer_config.beta2),
                eps=optimizer_config.eps,
                weight_decay=optimizer_config.weight_decay,
                fused=optimizer_config.implementation == "fused",
                state_dtype=_state_dtype(optimizer_config.state_dtype, part),
            )
            for part in groups
        ]
    )


def _state_dtype(asked: Any, groups: Sequence[_C.nn.ParameterGroup]) -> torch.dtype:
    names = {dtype: name for name, dtype in TORCH_DTYPE_MAP.items()}
    parameters: Any = names[groups[0].master.dtype]
    return TORCH_DTYPE_MAP[state_dtype(asked, parameters)]
