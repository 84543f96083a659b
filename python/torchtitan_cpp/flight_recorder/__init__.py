"""The last collectives of every rank: files written when a run ends badly, and read.

``python -m torchtitan_cpp.flight_recorder outputs/comm_traces`` tells which rank and
which collective. What the files hold is in csrc/collectives/flight_recorder.h.
"""

from torchtitan_cpp.flight_recorder.analysis import analyse
from torchtitan_cpp.flight_recorder.records import (
    Entry,
    FlightRecordError,
    Record,
    Records,
    read_records,
)

__all__ = [
    "Entry",
    "FlightRecordError",
    "Record",
    "Records",
    "analyse",
    "read_records",
]
