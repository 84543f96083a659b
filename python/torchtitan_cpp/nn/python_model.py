"""A plain ``nn.Module`` as a model of the training step.

The module's own ``forward`` runs. Each child of its ``layers`` (a list or dict of
modules) is a segment with a parameter group of its own; all other parameters are one
group that stays gathered while the module runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.loss import LossFunction
from torchtitan_cpp.nn.groups import adopt
from torchtitan_cpp.nn.installed import Absent, Installed, OnTheWay, Slot
from torchtitan_cpp.nn.layer_call import Layer, Run
from torchtitan_cpp.nn.recomputation import RecomputeOptions
from torchtitan_cpp.nn.selective import contexts_by_operation, recomputed_shapes
from torchtitan_cpp.nn.stages import stage_view
from torchtitan_cpp.rank_thread import turn

_ROOT = "root"
_HIDDEN = "h"
"""What a stage gives to the next one."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a module that runs in one call."""

    names: tuple[str, ...]
    """Its children, ``layers.<key>`` for those of ``layers``."""
    is_first: bool
    is_last: bool


@dataclass(kw_only=True)
class _Parameter:
    """A parameter under its first name, and every table that holds it."""

    name: str
    shape: list[int]
    tables: list[tuple[dict[str, Any], str, str]] = field(default_factory=list)
    """With its key and its full name there."""
    users: set[str] = field(default_factory=set)
    """The layers that hold it, or the root."""

    @property
    def group(self) -> str:
        """One that several parts share must be there for all of them."""
        return next(iter(self.users)) if len(self.users) == 1 else _ROOT


class PythonModel:
    """Runs a module as the step's program asks.

    Args:
        module: maps ``input`` (and the batch's further tensors, by keyword) to a
            prediction. Shapes and names are all that is read of its parameters.
        loss_fn: ``(prediction, labels)`` to the loss summed over valid tokens.
        stages: of this rank, in order, in a pipeline; ``module`` then has no other
            children. A stage but the first maps the one tensor that the stage before
            returns.
        on_the_way: what parameters pass between their memory and their modules.
    Raises:
        ValueError: for a parameter that cannot be trained here.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFunction,
        stages: Sequence[Stage] | None = None,
        on_the_way: OnTheWay | None = None,
    ) -> None:
        self.module = module
        self._on_the_way = on_the_way
        self._stages = stages or [Stage(names=(), is_first=True, is_last=True)]
        self._calls = (
            [stage_view(module, stage.names) for stage in stages]
            if stages
            else [module]
        )
        self._loss_fn = loss_fn
        self._dtype = torch.float32
        self._outer: Sequence[Slot] = ()
        layers = _layers_of(module)
        self._segments: list[str | None] = []  # names of layers; None: a stage's end
        for stage in self._stages:
            names = [name for name in layers if not stages or name in stage.names]
            self._segments += [*names, None]
        self._layers = [
            Layer(name, self._segments.index(name), child)
            for name, child in layers.items()
        ]
        self._parameters = _find_parameters(module, layers)

    def build_core(self) -> _C.nn.Model:
        """The C++ model whose forward this is."""
        parts = [_ROOT, *(layer.name for layer in self._layers)]
        members = {
            part: [p for p in self._parameters if p.group == part] for part in parts
        }
        names = [part for part in parts if members[part]]
        groups = [
            (name, name == _ROOT, [(p.name, p.shape) for p in members[name]])
            for name in names
        ]
        ends = iter(self._stages)
        segments = []
        for part in self._segments:
            uses = [names.index(name) for name in (_ROOT, part) if name in names]
            end = "" if part else ("loss" if next(ends).is_last else "stage end")
            segments.append((part or end, uses))
        return _C.nn.make_model(groups, segments, self._forward)

    @property
    def segments_per_stage(self) -> list[int]:
        """Of this rank's stages."""
        ends = [i + 1 for i, name in enumerate(self._segments) if name is None]
        return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

    def bind(
        self,
        groups: Sequence[_C.nn.ParameterGroup],
        recompute: Sequence[bool],
        *,
        device: torch.device,
        how: RecomputeOptions | None = None,
        recomputed_modules: Sequence[str] | None = None,
    ) -> None:
        """Tie the module to the memory of its parameters.

        Args:
            groups: of the laid out core.
            recompute: by segment, whether it runs again before its backward.
            device: where the module runs; its buffers are moved there.
            how: layers run again; None: as by default.
            recomputed_modules: None, or layers keep what selective.py lists, but no
                products of linear modules with these parts of names.
        """
        leaves = {
            shard.name: leaf
            for group in groups
            for shard, leaf in zip(group.shards, group.leaves, strict=True)
        }
        if leaves:
            self._dtype = next(iter(leaves.values())).dtype
        adopt(self.module, groups)
        outer = []
        for parameter in self._parameters:
            tensor = leaves[parameter.name]
            if parameter.group == _ROOT:
                outer += self._slots(parameter, tensor)
                continue
            absent = Absent.standing_for(parameter.name, tensor)
            outer += [Slot(table, key, absent) for table, key, _ in parameter.tables]
        self._outer = outer
        for layer in self._layers:
            mine = [p for p in self._parameters if layer.name in p.users]
            layer.slots = [
                slot
                for parameter in mine
                for slot in self._slots(parameter, leaves[parameter.name])
            ]
            layer.on_the_way = self._on_the_way
            layer.storages = frozenset(
                leaves[p.name].untyped_storage()._cdata
                for p in mine
                if p.group != _ROOT
            )
            recomputes = recompute[layer.index]
            layer.recompute = how or RecomputeOptions() if recomputes else None
            layer.device = device
            if layer.recompute is not None and recomputed_modules is not None:
                shapes = recomputed_shapes(
                    layer.name,
                    self.module.get_submodule(layer.name),
                    recomputed_modules,
                    {name: tuple(leaf.shape) for name, leaf in leaves.items()},
                )
                layer.recompute = replace(
                    layer.recompute, make_contexts=contexts_by_operation(shapes)
                )

    def _slots(self, parameter: _Parameter, tensor: torch.Tensor) -> list[Slot]:
        return [Slot(table, key, tensor, name) for table, key, name in parameter.tables]

    def _forward(
        self,
        values: Mapping[str, torch.Tensor],
        stage_index: int,
        progress: _C.nn.Progress,
    ) -> torch.Tensor:
        """Sum of the loss over one microbatch, or what the next stage is given."""
        stage, call = self._stages[stage_index], self._calls[stage_index]
        inputs = dict(values)
        labels = inputs.pop("labels")
        tokens = inputs.pop("input")
        given = tokens if stage.is_first else inputs.pop(_HIDDEN)
        is_training = torch.is_grad_enabled()
        if call.training != is_training:
            call.train(is_training)
        run = Run(progress, self._dtype)
        with turn(), Installed(self._outer, self._on_the_way):
            for layer in self._layers:
                layer.run = run
            try:
                prediction = call(
                    run.cast(given),
                    **{name: run.cast(tensor) for name, tensor in inputs.items()},
                )
            finally:
                for layer in self._layers:
                    layer.run = None
            if not stage.is_last:
                if not isinstance(prediction, torch.Tensor):
                    raise ValueError(
                        f"{type(self.module).__name__}: a pipeline stage must return "
                        f"one tensor, but returned {type(prediction).__name__}"
                    )
                return prediction
            loss = self._loss_fn(prediction, labels)
        if not isinstance(loss, torch.Tensor):
            raise ValueError(
                "TrainSpec.build_loss_fn: its function must return the sum of the loss "
                f"as a tensor, but returned {type(loss).__name__}"
            )
        return loss


def load_whole(
    groups: Sequence[_C.nn.ParameterGroup], values: Mapping[str, torch.Tensor]
) -> None:
    """Copy this rank's pieces of whole parameters, by name."""
    with torch.no_grad():
        for group in groups:
            for shard in group.shards:
                piece = values[shard.name]
                for dim, (begin, size) in enumerate(
                    zip(shard.offset, shard.value.shape, strict=True)
                ):
                    piece = piece.narrow(dim, begin, size)
                shard.value.copy_(piece)


def _layers_of(module: nn.Module) -> dict[str, nn.Module]:
    layers = getattr(module, "layers", None)
    if not isinstance(layers, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        return {}
    return {f"layers.{key}": child for key, child in layers.named_children()}


def _find_parameters(
    module: nn.Module, layers: Mapping[str, nn.Module]
) -> list[_Parameter]:
    found: dict[int, _Parameter] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        layer = ".".join(prefix.split(".")[:2])
        user = layer if layer in layers else _ROOT
        for key, parameter in owner._parameters.items():
            if parameter is None:
                continue
            name = f"{prefix}.{key}" if prefix else key
            _check(name, parameter)
            entry = found.setdefault(
                id(parameter), _Parameter(name=name, shape=list(parameter.shape))
            )
            entry.users.add(user)
            if all(
                table is not owner._parameters or key != k
                for table, k, _ in entry.tables
            ):
                entry.tables.append((owner._parameters, key, name))
    return list(found.values())


def _check(name: str, parameter: torch.Tensor) -> None:
    if not parameter.requires_grad:
        raise ValueError(
            f"parameter {name}: not supported yet: requires_grad=False; make it a "
            "buffer (register_buffer) if it is never trained"
        )
    if not parameter.is_floating_point():
        raise ValueError(
            f"parameter {name}: expected a real floating-point dtype, found "
            f"{parameter.dtype}"
        )
    if parameter.dim() == 0:
        raise ValueError(
            f"parameter {name}: expected at least one dim, found none; give it "
            "shape [1]"
        )
