"""Optimizers: Adam and AdamW in C++ over the flat buffers of parameter groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.nn import parameter_groups


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
        if state_dtype == torch.float32 and groups[0].master.dtype == torch.float64:
            state_dtype = torch.float64
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
        """Moments of this rank's rows by name of the moment and of the parameter."""
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
    if optimizer_config.name not in ("Adam", "AdamW"):
        raise ValueError(
            f"optimizer.name: expected Adam or AdamW, found {optimizer_config.name!r}"
        )
    return OptimizersContainer(
        [
            CoreOptimizer(
                parameter_groups(part),
                name=optimizer_config.name,
                lr=optimizer_config.lr,
                betas=(optimizer_config.beta1, optimizer_config.beta2),
                eps=optimizer_config.eps,
                weight_decay=optimizer_config.weight_decay,
                fused=optimizer_config.implementation == "fused",
                state_dtype=getattr(torch, optimizer_config.state_dtype),
            )
            for part in model_parts
        ]
    )


class OwnOptimizers:
    """What a user's ``build_optimizers_fn`` returned, called once a step by the program.

    The parameters of the model parts are this rank's rows with the clipped gradient of
    the global batch in ``.grad``; so an optimizer that works element by element gives
    the same in every layout.

    Args:
        given: an optimizer, or a container that can be iterated for its optimizers;
            ``step()`` of the container is called where it has one.
        module: whose parameters lie in parameter groups.
    Raises:
        ValueError: for something that is neither.
    """

    def __init__(self, given: Any, module: nn.Module) -> None:
        self.given = given
        self.optimizers: list[Any]
        if hasattr(given, "param_groups"):
            self.optimizers = [given]
        elif isinstance(given, Iterable):
            self.optimizers = list(given)
        else:
            self.optimizers = []
        for each in self.optimizers:
            if not hasattr(each, "param_groups") or not hasattr(each, "step"):
                self.optimizers = []
        if not self.optimizers:
            raise ValueError(
                "TrainSpec.build_optimizers_fn: expected an optimizer, or an iterable "
                "container of optimizers with step() and param_groups, found "
                f"{type(given).__name__}"
            )
        self._module = module
        self._shards = {
            shard.name: shard
            for group in parameter_groups(module)
            for shard in group.shards
        }

    def __iter__(self) -> Iterator[Any]:
        return iter(self.optimizers)

    def __len__(self) -> int:
        return len(self.optimizers)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def update(self) -> None:
        """Step with the gradients that lie in the parameter groups.

        Raises:
            ValueError: if a parameter of the module was replaced by another tensor.
        """
        steppers = [self.given] if hasattr(self.given, "step") else self.optimizers
        for parameter in self._module.parameters():
            parameter.grad = None  # or zero_grad could clear the gradients themselves
        for each in steppers:
            if hasattr(each, "zero_grad"):
                each.zero_grad()
        for name, parameter in self._module.named_parameters():
            shard = self._shards[name]
            if parameter.data_ptr() != shard.value.data_ptr():
                raise ValueError(
                    f"parameter {name} of the model was replaced by another tensor; "
                    "change its values in place (copy_, load_state_dict without assign)"
                )
            parameter.grad = shard.gradient.to(parameter.dtype)
        with torch.enable_grad():
            for each in steppers:
                each.step()


def as_container(given: Any, module: nn.Module) -> OptimizersContainer | OwnOptimizers:
    """The package's container as it is, anything else to be called by the program."""
    if isinstance(given, OptimizersContainer):
        return given
    return OwnOptimizers(given, module)
