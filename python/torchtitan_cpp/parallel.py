"""Groups of ranks for a run: from torchrun's environment to one Group per mesh axis.

``init_distributed`` joins the other processes, ``Distributed.make_groups`` makes the
groups, ``Distributed.close`` leaves. Threads of one process take ``LocalWorld`` and
``run_local`` (see rank_thread.py); dry runs take ``make_fake_groups``.
"""

from __future__ import annotations

import gc
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from torchtitan_cpp import _C
from torchtitan_cpp.flight_recorder.recorder import FlightRecorder, FlightSettings
from torchtitan_cpp.launch_environment import LaunchEnvironment
from torchtitan_cpp.local_ranks import (
    AxisRanks,
    CollectiveError,
    LocalWorld,
    first_line,
    make_fake_groups,
    make_local_groups,
    own_ranks,
    run_local,
)

Group = _C.collectives.Group
Handle = _C.collectives.Handle
Heartbeat = _C.collectives.Heartbeat
Recorder = _C.collectives.Recorder
Watch = _C.collectives.Watch
c10d_group = _C.collectives.c10d_group
recorded = _C.collectives.recorded
traced = _C.collectives.traced

__all__ = [
    "CollectiveError",
    "Distributed",
    "EXIT_RANK_LOST",
    "Group",
    "LaunchEnvironment",
    "LocalWorld",
    "Recorder",
    "init_distributed",
    "make_fake_groups",
    "make_local_groups",
    "own_ranks",
    "run_local",
]

EXIT_RANK_LOST = 75
"""Exit code of a rank that ends because another one was lost (EX_TEMPFAIL)."""

_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""By the device of the tensors."""

_BACKGROUND_SECONDS = 365 * 24 * 3600.0
"""Deadline of waits that end when a rank is lost."""


class Distributed:
    """This process among all processes of the run; made by ``init_distributed``.

    With one process there is no process group, no store and no heartbeat, and every
    method works. Use it as a context manager, or call ``close``.
    """

    def __init__(
        self,
        *,
        environment: LaunchEnvironment | None,
        device: torch.device,
        watch: Watch,
        train_timeout_seconds: float,
        flight: FlightSettings | None = None,
    ) -> None:
        self.rank = environment.rank if environment else 0
        self.world_size = environment.world_size if environment else 1
        self.local_rank = environment.local_rank if environment else 0
        self.device = device
        self.watch = watch
        """Deadline and abort of every wait; its ``step`` appears in messages."""
        self._environment = environment
        self._train_timeout_seconds = train_timeout_seconds
        self._flight = flight
        self._flight_recorder: FlightRecorder | None = None
        self._heartbeat: Heartbeat | None = None
        self._heartbeat_seconds = 0.0
        # None where this rank is no member.
        self._process_groups: dict[tuple[int, ...], dist.ProcessGroup | None] = {}
        self._background_watches: list[Watch] = []
        self._closed = False

    def _join(self, backend: str, heartbeat_seconds: float) -> None:
        """Meet the other processes and start the heartbeat."""
        environment = self._environment
        assert environment is not None
        if environment.one_node and "lo" in dict(socket.if_nameindex()).values():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        seconds = self.watch.timeout_seconds
        owner = "the launcher" if environment.launcher_has_store else "rank 0"
        is_master = self.rank == 0 and not environment.launcher_has_store
        store = self._connect(is_master=is_master)
        # A connection of its own: one that hangs must not hang the heartbeat.
        self._heartbeat_seconds = heartbeat_seconds
        pulse_store = self._connect(is_master=False)
        self._heartbeat = Heartbeat(
            pulse_store,
            rank=self.rank,
            size=self.world_size,
            interval_seconds=heartbeat_seconds,
            store_owner=owner,
            longest_idle_seconds=seconds,
            watch=self.watch,
        )
        if self._flight is not None:
            run = store.compare_set("flight_recorder", "", secrets.token_hex(8))
            self._flight_recorder = self._flight.recorder(
                rank=self.rank, size=self.world_size, run=run.decode()
            )
        if self._flight_recorder is not None:
            self._flight_recorder.write_on_abort(self.watch)
        try:
            dist.init_process_group(
                backend,
                store=store,
                rank=self.rank,
                world_size=self.world_size,
                timeout=timedelta(seconds=seconds),
            )
        except RuntimeError as error:
            raise CollectiveError(self._absent_ranks(error)) from error
        self._process_groups[tuple(range(self.world_size))] = _default_group()

    def _connect(self, *, is_master: bool) -> Store:
        environment = self._environment
        assert environment is not None
        seconds = self.watch.timeout_seconds
        try:
            store = TCPStore(
                environment.master_addr,
                environment.master_port,
                world_size=self.world_size,
                is_master=is_master,
                timeout=timedelta(seconds=seconds),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except RuntimeError as error:
            raise CollectiveError(
                f"no store at MASTER_ADDR:MASTER_PORT = {environment.master_addr}:"
                f"{environment.master_port} within {seconds:g} s: {first_line(error)}"
            ) from error
        return PrefixStore(f"torchtitan_cpp/{environment.attempt}", store)

    def _absent_ranks(self, error: Exception) -> str:
        """One line that says who did not come."""
        seconds = self.watch.timeout_seconds
        store = self._connect(is_master=False)
        absent = [
            rank for rank in range(self.world_size) if not store.check([f"beat/{rank}"])
        ]
        if not absent:
            return f"could not connect the ranks: {first_line(error)}"
        names = ", ".join(str(rank) for rank in absent[:8])
        return (
            f"{len(absent)} of {self.world_size} ranks did not start within "
            f"{seconds:g} s (comm.init_timeout_seconds): {names}"
        )

    def make_groups(
        self, axes: AxisRanks, *, recorder: Recorder | None = None
    ) -> dict[str, Group]:
        """Make one Group per axis; every process calls this with the same axes.

        Axes of the same ranks share connections. Called once per run.

        Args:
            axes: for each axis the ranks of all its groups, in order.
            recorder: counts what the groups do.

        Raises:
            ValueError: unless each axis holds every rank of the world once.
        """
        groups = {}
        for axis, all_ranks in axes.items():
            ranks = own_ranks(all_ranks, axis, self.rank, self.world_size)
            for members in all_ranks:
                self._make_process_group(tuple(members))
            process_group = self._process_groups.get(tuple(ranks))
            group = Group(axis)
            if process_group is not None:
                group = c10d_group(process_group, name=axis, watch=self.watch)
                if self._flight_recorder is not None:  # torch has sorted the ranks
                    group = traced(group, self._flight_recorder, ranks=sorted(ranks))
            groups[axis] = recorded(group, recorder) if recorder else group
        return groups

    def _make_process_group(self, ranks: tuple[int, ...]) -> None:
        """All processes make all groups, also of others, in the same order."""
        if len(ranks) == 1 or ranks in self._process_groups:
            return
        made = dist.new_group(
            list(ranks),
            timeout=timedelta(seconds=self.watch.timeout_seconds),
            backend=_BACKENDS[self.device.type],
        )
        self._process_groups[ranks] = made if self.rank in ranks else None

    def make_background_group(self, name: str) -> Group:
        """All ranks once more, over Gloo, for a thread beside the step.

        Every process calls this at the same place. Waits in it have no deadline and
        are not seen by ``watch``; who waits looks at ``rank_lost``.
        """
        if self._environment is None:
            return Group(name)
        process_group = dist.new_group(
            timeout=timedelta(seconds=self.watch.timeout_seconds), backend="gloo"
        )
        watch = Watch(timeout_seconds=_BACKGROUND_SECONDS)
        self._background_watches.append(watch)
        return c10d_group(process_group, name=name, watch=watch)

    @property
    def rank_lost(self) -> bool:
        """Whether all waits have been ended because a rank was lost."""
        return bool(self.watch.aborted)

    def begin_step(self, step: int) -> None:
        """Note the step for messages about ranks that are lost."""
        self.watch.step = step
        if self._flight_recorder is not None:
            self._flight_recorder.step = step

    def first_step_passed(self) -> None:
        """Switch from ``comm.init_timeout_seconds`` to ``train_timeout_seconds``.

        Called after the first step of a run, a resumed one too.
        """
        self.watch.timeout_seconds = self._train_timeout_seconds
        if self.device.type == "cpu":
            return
        timeout = timedelta(seconds=self._train_timeout_seconds)
        for group in self._process_groups.values():
            if group is not None:  # for NCCL's own watchdog
                dist.distributed_c10d._set_pg_timeout(timeout, group)

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Waits for CPU tensors inside have no deadline: others may work for long.

        They end when a rank is lost: at once where its process is seen to end, or when
        it has given no sign of life for thirty heartbeats, or its process has done
        nothing for the init timeout. Each rank watches over one
        other for as long as it is inside itself. May be nested.
        """
        outer = self.watch.patient
        self.watch.patient = True
        try:
            yield
        finally:
            self.watch.patient = outer

    def report_failure(self, error: BaseException) -> str:
        """Tell all ranks why this one ends the run; returns the line to print.

        That is the first cause of all ranks: where this rank fails only because another
        one did, the line names the other one. Follow it with ``close(failed=True)`` and
        exit with ``EXIT_RANK_LOST`` or another code that is not 0.
        """
        if isinstance(error, CollectiveError) or self._heartbeat is None:
            return first_line(error)
        cause = f"rank {self.rank} ({socket.gethostname()}, pid {os.getpid()}) failed: "
        return self._heartbeat.report(
            f"{cause}{type(error).__name__}: {first_line(error)}"
        )

    def close(self, *, failed: bool = False) -> None:
        """Leave the other processes; the groups made here cannot be used any more.

        Args:
            failed: the run ends with an error, so operations may be under way: nothing
                waits for other ranks. Rank 0 stays for two heartbeats where it holds
                the store, so that the others learn the cause.
        """
        if self._closed:
            return
        self._closed = True
        environment = self._environment
        holds_store = (
            environment is not None
            and self.rank == 0
            and not environment.launcher_has_store
        )
        if failed and holds_store:
            time.sleep(2 * self._heartbeat_seconds)
        if self._heartbeat is not None:
            if failed:
                self._heartbeat.stop()
            else:
                self._heartbeat.leave()
        self.watch.close()
        for watch in self._background_watches:
            if failed:
                watch.abort("the run has ended")
            watch.close()
        self._process_groups.clear()
        gc.collect()
        if environment is not None and not failed:
            dist.destroy_process_group()

    def __enter__(self) -> Distributed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=error is not None)


def init_distributed(
    *,
    device_type: Literal["cpu", "cuda"],
    init_timeout_seconds: float,
    train_timeout_seconds: float,
    heartbeat_seconds: float = 1.0,
    flight: FlightSettings | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Distributed:
    """Join the processes that torchrun started; one rank alone where it did not.

    Args:
        device_type: chooses Gloo or NCCL, and the device by ``LOCAL_RANK``. All ranks
            together talk about tensors on the CPU over Gloo in any case.
        init_timeout_seconds: longest wait until the first step has passed.
        train_timeout_seconds: longest wait after that.
        heartbeat_seconds: time between two signs of life of a rank.
        flight: where every rank writes its last collectives when the run ends badly.
        environ: torchrun's variables.

    Raises:
        ValueError: the environment is incomplete.
        CollectiveError: one line that names the ranks that did not come in time.
    """
    environment = LaunchEnvironment.read(environ)
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", environment.local_rank if environment else 0)
        torch.cuda.set_device(device)
    if environment is not None and environment.world_size == 1:
        environment = None
    distributed = Distributed(
        environment=environment,
        device=device,
        watch=Watch(timeout_seconds=init_timeout_seconds),
        train_timeout_seconds=train_timeout_seconds,
        flight=flight,
    )
    if environment is not None:
        backend = _BACKENDS[device_type]
        if device_type == "cuda":
            backend = f"cuda:{backend},cpu:{_BACKENDS['cpu']}"
        try:
            distributed._join(backend, heartbeat_seconds)
        except CollectiveError:
            distributed.close(failed=True)
            raise
    return distributed


def _default_group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group
