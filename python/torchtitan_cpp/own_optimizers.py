"""Optimizers that ``TrainSpec.build_optimizers_fn`` of a user returned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from torchtitan_cpp.nn import parameter_groups
from torchtitan_cpp.optim import OptimizersContainer
from torchtitan_cpp.rank_thread import turn


class OwnOptimizers:
    """What a user's ``build_optimizers_fn`` returned; the program calls it once a step.

    The parameters of the model parts are this rank's pieces with the clipped gradient
    of the global batch in ``.grad``; so an optimizer that works element by element
    gives the same in every layout.

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
        with turn(), torch.enable_grad():
            for each in steppers:
                each.step()

    # --- checkpoints ---------------------------------------------------------------

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """State tensors that are laid out like the parameters: by key, by parameter.

        Raises:
            ValueError: for state that cannot be saved by pieces.
        """
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        for name, parameter, key, value in self._entries():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                if value.shape != parameter.shape:
                    raise ValueError(
                        f"checkpoint: the optimizer's {key} of {name} has shape "
                        f"{list(value.shape)}; expected that of the parameter, "
                        f"{list(parameter.shape)}"
                    )
                tensors.setdefault(key, {})[name] = value
        return tensors

    def numbers(self) -> dict[str, dict[str, float]]:
        """The rest of the state, such as step counts: by key, by parameter."""
        numbers: dict[str, dict[str, float]] = {}
        for name, _, key, value in self._entries():
            if isinstance(value, (int, float)) or (
                isinstance(value, torch.Tensor) and value.dim() == 0
            ):
                numbers.setdefault(key, {})[name] = float(value)
        return numbers

    def make_state(self) -> None:
        """Have optimizers that make their state in the first step make it now.

        One step with gradient and learning rate zero; the weights stay as they are.
        """
        list(self._entries())  # raises where the state could not be saved
        before = [p.detach().clone() for p in self._module.parameters()]
        for parameter in self._module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        rates = [(group, group["lr"]) for each in self for group in each.param_groups]
        for group, _ in rates:
            group["lr"] = 0.0
        for each in self:
            each.step()
        for group, rate in rates:
            group["lr"] = rate
        with torch.no_grad():
            for parameter, old in zip(self._module.parameters(), before, strict=True):
                parameter.grad = None
                parameter.copy_(old)

    def finish_load(self, numbers: Mapping[str, Mapping[str, float]] | None) -> None:
        """Continue with the numbers of the checkpoint; None: without any state."""
        if numbers is None:
            for each in self:
                each.state.clear()
            return
        for name, parameter, key, value in list(self._entries()):
            number = numbers.get(key, {}).get(name)
            if number is None:
                continue
            if isinstance(value, torch.Tensor):
                value.fill_(number)
            else:
                self._state_of(parameter)[key] = type(value)(number)

    def _entries(self) -> Iterator[tuple[str, nn.Parameter, str, Any]]:
        for each in self:
            if not isinstance(each, torch.optim.Optimizer):
                raise ValueError(
                    "checkpoint.enable: not supported with an optimizer that is not "
                    f"a torch.optim.Optimizer, but {type(each).__name__}"
                )
        for name, parameter in self._module.named_parameters():
            for key, value in self._state_of(parameter).items():
                yield name, parameter, key, value

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        for each in self:
            if parameter in each.state:
                state: dict[str, Any] = each.state[parameter]
                return state
        return {}


def as_container(given: Any, module: nn.Module) -> OptimizersContainer | OwnOptimizers:
    """The package's container as it is, anything else to be called by the program."""
    if isinstance(given, OptimizersContainer):
        return given
    return OwnOptimizers(given, module)
