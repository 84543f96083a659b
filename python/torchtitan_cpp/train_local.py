"""A run whose ranks are threads of this process (``comm.mode`` local_tensor)."""

from __future__ import annotations

import os
import secrets
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from torchtitan_cpp import stopping
from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.errors import needs_traceback
from torchtitan_cpp.flight_recorder.recorder import FlightSettings
from torchtitan_cpp.local_ranks import LocalWorld, run_local
from torchtitan_cpp.logging import init_logger, shown_ranks
from torchtitan_cpp.parallel import EXIT_RANK_LOST, CollectiveError
from torchtitan_cpp.rank_thread import RankThread

if TYPE_CHECKING:
    from torchtitan_cpp.trainer import Trainer

GRACE_SECONDS = 5.0
"""Until the others give up after a failure, each at its next wait for another rank."""


def train_local(
    job_config: JobConfig,
    trainer_class: type[Trainer],
    *,
    world_size: int,
) -> int:
    """Train with a trainer in each thread; the exit code.

    The first failure is told once, with its rank, and ends all ranks. Where one of them
    does not come to an end, so does the process.
    """
    comm = job_config.comm
    world = LocalWorld(world_size, timeout_seconds=comm.init_timeout_seconds)
    flight, run = FlightSettings.of(job_config), secrets.token_hex(8)
    threads = [
        RankThread(
            world,
            rank,
            train_timeout_seconds=comm.train_timeout_seconds,
            flight_recorder=flight.recorder(rank=rank, size=world_size, run=run),
        )
        for rank in range(world_size)
    ]
    failures: list[tuple[BaseException, str]] = []
    running = set(range(world_size))

    def train_rank(rank: int) -> None:
        trainer: Trainer | None = None
        with threads[rank].here():
            try:
                trainer = trainer_class(job_config)
                stopping.take_over()
                trainer.train()
                trainer.close()
            except BaseException as error:
                failures.append((error, threads[rank].report_failure(error)))
                if trainer:
                    trainer.close(failed=True)
                raise
            finally:
                running.discard(rank)

    init_logger(shown_ranks=shown_ranks())
    try:
        run_local(
            world,
            train_rank,
            num_threads=_threads_per_rank(world_size),
            grace_seconds=GRACE_SECONDS,
        )
    except Exception:
        # A rank that fails because another one did may be the first to say so.
        error, line = min(failures, key=lambda each: _is_lost(each[0]))
        if not _is_lost(error) and needs_traceback(error):
            traceback.print_exception(error)
        print(line, file=sys.stderr, flush=True)
        _write_flight_records(threads, line)
        code = EXIT_RANK_LOST if _is_lost(error) else 1
        if running:  # and may never come back: nothing is torn down
            print(f"left behind: ranks {sorted(running)}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(code)
        return code
    return 0


def _write_flight_records(threads: Sequence[RankThread], cause: str) -> None:
    for thread in threads:
        if thread.flight_recorder:
            try:
                thread.flight_recorder.write(cause)
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
                return


def _is_lost(error: BaseException) -> bool:
    """Whether it is another rank that failed."""
    return isinstance(error, CollectiveError)


def _threads_per_rank(world_size: int) -> int:
    """As many as the user says, else the cores are shared."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max(1, torch.get_num_threads() // world_size)
