"""What a trainer hands to the checkpoint manager, and what it gets back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

Json = (
    None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
)  # integers of at most 64 bits; finite floats, kept bit for bit

Kind = Literal["model", "optimizer"]


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """This rank's box of one global tensor."""

    name: str
    """The same on all ranks and in all layouts: torchtitan's FQN, or
    ``optimizer.exp_avg.<fqn>`` and the like. A name may occur more than once on a
    rank, with different boxes."""
    kind: Kind
    local: torch.Tensor
    """Of shape ``size``, contiguous, on any device. Saved, or filled by loading."""
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    """Of the box in the global tensor; empty for a scalar."""
    size: tuple[int, ...]
    """May hold zeros: nothing of the tensor lies on this rank."""
    is_writer: bool
    """This rank saves the box; exactly one of the ranks that hold it does."""
    is_buffer: bool = False
    """Of the kind ``model``, but not trained: held whole by every rank, and a folder of
    Hugging Face weights may lack it."""

    def __post_init__(self) -> None:
        dims = len(self.global_shape)
        if not (len(self.offset) == len(self.size) == dims):
            raise ValueError(
                f"{self.name}: offset {self.offset} and size {self.size} do not fit "
                f"the global shape {self.global_shape}"
            )
        bounds = zip(self.offset, self.size, self.global_shape, strict=True)
        if any(o < 0 or s < 0 or o + s > g for o, s, g in bounds):
            raise ValueError(
                f"{self.name}: box at {self.offset} of size {self.size} lies outside "
                f"the global shape {self.global_shape}"
            )
        if tuple(self.local.shape) != self.size or not self.local.is_contiguous():
            raise ValueError(
                f"{self.name}: expected a contiguous tensor of shape {self.size}, "
                f"found shape {tuple(self.local.shape)}, strides "
                f"{self.local.stride()}"
            )

    @property
    def numel(self) -> int:
        """Elements of the box."""
        return math.prod(self.size)

    def numbers(self) -> torch.Tensor:
        """What is saved."""
        return self.local.detach()


@dataclass(frozen=True, kw_only=True)
class TorchSettings:
    """What torchtitan keeps in its checkpoints and a run here has in its configuration.

    Written into folders of the format ``dcp`` for it, never read from there.
    """

    param_groups: Mapping[str, Mapping[str, Json]]
    """Parameter of this rank to what torch's optimizer has in its ``param_groups``."""
    initial_rates: Sequence[float]
    """Peak learning rate of each group."""
    rates: Sequence[float]
    """Learning rate of the next step of each group."""
    data_ranks: int
    """Ranks that read different rows of the batch."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything of a run that is saved, as one rank sees it."""

    tensors: Sequence[TensorEntry]
    scalars: Mapping[str, Json] = field(default_factory=dict)
    """Part (``train_state``, ``lr_scheduler``, ..) to value, equal on all ranks."""
    gathered: Mapping[str, Json] = field(default_factory=dict)
    """Part (``dataloader``, ..) to this rank's own value. All of them are saved, and a
    rank that loads gets the list of all, by the ranks that saved."""
    torch_settings: TorchSettings | None = None

    def __post_init__(self) -> None:
        both = self.scalars.keys() & self.gathered.keys()
        reserved = (self.scalars.keys() | self.gathered.keys()) & {"model", "optimizer"}
        if both or reserved:
            raise ValueError(f"state parts named twice: {sorted(both | reserved)}")

    @property
    def parts(self) -> list[str]:
        """Names that ``checkpoint.exclude_from_loading`` may hold."""
        kinds = dict.fromkeys(entry.kind for entry in self.tensors)
        return [*kinds, *self.scalars, *self.gathered]


@dataclass(frozen=True, kw_only=True)
class LoadedState:
    """What a load returned; the tensors were filled in place."""

    step: int
    """Steps done. 0 after a load without ``train_state``: training starts at step 1."""
    path: str
    scalars: Mapping[str, Json]
    """As saved, without excluded parts; empty after a load of weights only."""
    gathered: Mapping[str, Sequence[Json]]
    """Part to one value for each rank that saved."""


class Ranks(Protocol):
    """How the ranks of a run talk to each other; calls are collective."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The data of all ranks, in rank order; lengths may differ."""


class SingleRank:
    """A run of one rank."""

    rank = 0
    world_size = 1

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Its own data."""
        return [data]
