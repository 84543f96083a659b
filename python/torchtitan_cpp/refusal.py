"""How ranks say, before they have met, that they will not start."""

from __future__ import annotations

import os
import sys
import time

EXIT_BAD_INPUT = 2

SECONDS_FOR_RANK_0 = 10.0
"""Rank 0 may be so much later than another one to find the same."""


def refuse(text: str) -> int:
    """Print why this rank does not start; the exit code.

    Mostly all ranks have found the same, and rank 0 says it. torchrun ends all ranks as
    soon as one has left, so the others wait for that. One that is still there then has
    found what rank 0 has not, such as a file that its machine lacks, and says so.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(text, file=sys.stderr, flush=True)
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(SECONDS_FOR_RANK_0)
        print(f"rank {rank}: {text}", file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT
