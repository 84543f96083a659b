"""Starts the recorder of a rank, as ``comm.trace_buf_size`` and its folder say."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torchtitan_cpp import _C

FlightRecorder = _C.collectives.FlightRecorder


@dataclass(frozen=True, kw_only=True)
class FlightSettings:
    """Where records go and how much they hold."""

    capacity: int
    """Entries of each rank; 0: nothing is recorded."""
    folder: str
    prefix: str

    @classmethod
    def of(cls, job_config: Any) -> FlightSettings:
        """From the sections ``comm`` and ``job``."""
        comm = job_config.comm
        return cls(
            capacity=comm.trace_buf_size,
            folder=os.path.join(job_config.job.dump_folder, comm.save_traces_folder),
            prefix=comm.save_traces_file_prefix,
        )

    def recorder(self, *, rank: int, size: int, run: str) -> FlightRecorder | None:
        """None where there is nothing to record.

        Args:
            run: the same text on all ranks, and only in this start of the job.
        """
        if self.capacity == 0 or size == 1:
            return None
        return FlightRecorder(
            rank=rank,
            size=size,
            capacity=self.capacity,
            run=run,
            path=os.path.join(self.folder, f"{self.prefix}{rank}.json"),
        )
