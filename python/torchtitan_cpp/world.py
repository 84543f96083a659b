"""Where this process stands: its device, its rank, and a group for every mesh axis."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.flight_recorder.recorder import FlightSettings
from torchtitan_cpp.parallel import (
    Distributed,
    Group,
    LaunchEnvironment,
    Recorder,
    init_distributed,
    make_fake_groups,
)
from torchtitan_cpp.rank_thread import RankThread, current_rank


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """The degree of every parallelism, checked and resolved (torchtitan's names)."""

    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int
    pp: int
    ep: int
    etp: int
    world_size: int

    @property
    def dp_enabled(self) -> bool:
        return self.dp_replicate * self.dp_shard > 1

    @property
    def fsdp_enabled(self) -> bool:
        return self.dp_shard * self.cp > 1

    @property
    def pp_enabled(self) -> bool:
        return self.pp > 1

    @property
    def non_data_parallel_size(self) -> int:
        """Ranks that work on the same rows of the batch."""
        return self.cp * self.tp * self.pp

    @property
    def batch(self) -> int:
        """Ranks that read different rows of the batch."""
        return self.dp_replicate * self.dp_shard


@dataclass(frozen=True, kw_only=True)
class World:
    """This rank among all ranks; ``groups`` has one Group per mesh axis."""

    rank: int
    device: torch.device
    parallel_dims: ParallelDims
    groups: Mapping[str, Group]
    recorder: Recorder
    """Counts the calls and bytes of every axis."""
    distributed: Distributed | RankThread | None
    """None where no other rank exists: one that is played without the others."""

    @property
    def is_fake(self) -> bool:
        """Whether the other ranks are only pretended and nothing is computed."""
        return self.distributed is None

    @property
    def is_local(self) -> bool:
        """Whether all ranks are threads of this process."""
        return isinstance(self.distributed, RankThread)

    @property
    def leads_process(self) -> bool:
        """Whether this rank does what is done once in a process."""
        return not self.is_local or self.rank == 0

    @property
    def data_rank(self) -> int:
        """Coordinate on the axis "batch"."""
        return int(self.groups["batch"].rank)

    def begin_step(self, step: int) -> None:
        """Note the step for messages about ranks that are lost."""
        if self.distributed:
            self.distributed.begin_step(step)

    def patiently(self) -> AbstractContextManager[None]:
        """Ranks wait inside for as long as no rank is lost, whatever the timeouts."""
        return self.distributed.patiently() if self.distributed else nullcontext()

    def count_memory(self) -> _C.core.MemoryCounter:
        """The counter of this rank's CPU tensors; called before they are made."""
        return _C.core.thread_memory() if self.is_local else _C.core.cpu_memory()

    def first_step_passed(self) -> None:
        """From now on ranks wait for ``comm.train_timeout_seconds`` at most."""
        if self.distributed:
            self.distributed.first_step_passed()


def find_device_type() -> Literal["cpu", "cuda"]:
    """CUDA where there is a device, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def find_world_size(job_config: Any, environ: Mapping[str, str] = os.environ) -> int:
    """Ranks of the run: torchrun's, or as many as one process is to play.

    That process (``comm.mode``) reads ``NGPU``, else ``WORLD_SIZE``.

    Raises:
        ValueError: for a number that is none, or ranks that are to be processes and
            threads of one at once.
    """
    mode = job_config.comm.mode
    if mode == "local_tensor":
        launch = LaunchEnvironment.read(environ)
        if launch and launch.world_size > 1:
            raise ValueError(
                "comm.mode = 'local_tensor': all ranks are threads of one process, but "
                f"a launcher has started {launch.world_size} processes; start it with "
                f"NGPU={launch.world_size} python -m torchtitan_cpp.train"
            )
    if mode != "default":
        name = "NGPU" if "NGPU" in environ else "WORLD_SIZE"
        text = environ.get(name, "1")
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"{name}: expected a number of ranks, found {text!r}")
        return int(text)
    launch = LaunchEnvironment.read(environ)
    return launch.world_size if launch else 1


def build_world(job_config: Any) -> World:
    """Join the other ranks and make the groups of the mesh.

    Raises:
        ValueError: if the degrees do not fit the number of ranks.
        CollectiveError: if ranks do not come in time.
    """
    if job_config.comm.mode == "fake_backend":
        return build_fake_world(job_config)
    mesh = _mesh(job_config)
    recorder = Recorder()
    distributed = current_rank() or init_distributed(
        device_type=find_device_type(),
        init_timeout_seconds=job_config.comm.init_timeout_seconds,
        train_timeout_seconds=job_config.comm.train_timeout_seconds,
        flight=FlightSettings.of(job_config),
    )
    return World(
        rank=distributed.rank,
        device=distributed.device,
        parallel_dims=_dims(mesh),
        groups=distributed.make_groups(_axes(mesh), recorder=recorder),
        recorder=recorder,
        distributed=distributed,
    )


def build_fake_world(job_config: Any, rank: int = 0) -> World:
    """One rank of a dry run; the others exist on paper only.

    Raises:
        ValueError: if the degrees do not fit the number of ranks.
    """
    mesh = _mesh(job_config)
    recorder = Recorder()
    dims = _dims(mesh)
    return World(
        rank=rank,
        device=torch.device("meta"),
        parallel_dims=dims,
        groups=make_fake_groups(
            _axes(mesh), rank=rank, world_size=dims.world_size, recorder=recorder
        ),
        recorder=recorder,
        distributed=None,
    )


def ranks_of_pipeline(job_config: Any, rank: int) -> list[int]:
    """The ranks that have the stages of one pipeline with this one, in order."""
    return list(_mesh(job_config).ranks("pp", rank))


def _mesh(job_config: Any) -> _C.mesh.Mesh:
    p = job_config.parallelism
    return _C.mesh.Mesh(
        _C.mesh.ParallelDims(
            dp_replicate=p.data_parallel_replicate_degree,
            dp_shard=p.data_parallel_shard_degree,
            cp=p.context_parallel_degree,
            tp=p.tensor_parallel_degree,
            pp=p.pipeline_parallel_degree,
            ep=p.expert_parallel_degree,
            etp=p.expert_tensor_parallel_degree,
            world_size=find_world_size(job_config),
        )
    )


def _dims(mesh: _C.mesh.Mesh) -> ParallelDims:
    return ParallelDims(
        **{name: getattr(mesh.dims, name) for name in ParallelDims.__annotations__}
    )


def _axes(mesh: _C.mesh.Mesh) -> dict[str, list[tuple[int, ...]]]:
    """By axis the ranks of all its groups."""
    return {
        axis: [
            tuple(mesh.ranks(axis, rank))
            for rank in range(mesh.dims.world_size)
            if mesh.coordinate(rank, axis) == 0  # one rank of each group
        ]
        for axis in ("world", "pp", "dp_replicate", "fsdp", "batch", "loss", "cp", "tp")
    }
