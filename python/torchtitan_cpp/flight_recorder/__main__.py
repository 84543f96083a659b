"""``python -m torchtitan_cpp.flight_recorder``: who kept the others waiting."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from torchtitan_cpp.flight_recorder.analysis import analyse
from torchtitan_cpp.flight_recorder.records import FlightRecordError, read_records

EXIT_BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what the records of a folder tell; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m torchtitan_cpp.flight_recorder",
        description="Tells from the flight records of all ranks which rank kept the "
        "others waiting, and in which collective.",
    )
    parser.add_argument(
        "folder",
        help="where the records are: job.dump_folder/comm.save_traces_folder, by "
        "default outputs/comm_traces",
    )
    try:
        records = read_records(parser.parse_args(arguments).folder)
    except FlightRecordError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    print("\n".join(analyse(records)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
