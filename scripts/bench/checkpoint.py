"""Checkpoints beside torch.distributed.checkpoint, a plain copy, and dd, as JSON.

    python scripts/bench/checkpoint.py --disk /var/tmp --out checkpoint.json

Both sides save and load the same tensors with the same number of ranks into the same
file system, and both sync their files; of ``--runs`` rounds, in which the sides take
turns, the median counts. A side is checkpoint_side.py, one process for each rank.

Results by ranks and place, in GB/s (1e9 bytes of the state of all ranks) or seconds:

* ``save``, ``load`` of ``native``, ``dcp`` (both ours) and ``torch``. Ours hashes what
  it writes and compares the hashes of what it reads; torch's does neither.
* ``blocked``: how long the caller of an async save waits, of ``ours`` and ``torch``;
  ``first`` is the first save, which faults its memory in, ``later`` the median of the
  others; ``copy`` is a plain ``copy_`` of the state into new or used memory.
* ``dd``: ``dd conv=fsync`` of as many bytes, one process for each rank.
* ``extra_memory``: the most private memory beyond the state while a save runs, as a
  share of the rank's state; async ones keep a copy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDE = Path(__file__).with_name("checkpoint_side.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=512, help="of all ranks")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    results = []
    for ranks in args.ranks:
        for place in ("memory", "disk"):
            with tempfile.TemporaryDirectory(dir=getattr(args, place)) as folder:
                result = compare(args, ranks, Path(folder))
            results.append({"ranks": ranks, "place": place, **result})
            print(json.dumps(results[-1], indent=2), flush=True)
    text = json.dumps({"mebibytes": args.mebibytes, "results": results}, indent=2)
    if args.out:
        args.out.write_text(text + "\n")


def compare(args: argparse.Namespace, ranks: int, folder: Path) -> dict[str, Any]:
    """One number of ranks in one place."""
    results = run_side(folder, ranks, args.mebibytes, args.runs)
    size = args.mebibytes << 20
    speeds = {
        action: {
            side: round(size / seconds / 1e9, 3)
            for side, seconds in results[action].items()
        }
        for action in ("save", "load")
    }
    dd = statistics.median(dd_seconds(folder, ranks, size) for _ in range(args.runs))
    blocked = results["blocked"]
    best_save = max(speeds["save"]["native"], speeds["save"]["dcp"])
    return {
        **speeds,
        "dd": round(size / dd / 1e9, 3),
        "blocked": blocked,
        "extra_memory": results["extra_memory"],
        "ratios": {
            "native_save_to_torch": ratio(speeds["save"], "native", "torch"),
            "dcp_save_to_torch": ratio(speeds["save"], "dcp", "torch"),
            "best_save_to_dd": round(best_save / (size / dd / 1e9), 2),
            "blocked_to_copy_first": ratio(blocked["first"], "ours", "copy"),
            "blocked_to_copy_later": ratio(blocked["later"], "ours", "copy"),
            "blocked_to_torch_first": ratio(blocked["first"], "ours", "torch"),
            "blocked_to_torch_later": ratio(blocked["later"], "ours", "torch"),
        },
    }


def ratio(values: dict[str, float], one: str, other: str) -> float:
    return round(values[one] / values[other], 2)


def run_side(folder: Path, ranks: int, mebibytes: int, runs: int) -> dict[str, Any]:
    """Run checkpoint_side.py on all ranks; what rank 0 found."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    out = folder / "results.json"
    processes = []
    for rank in range(ranks):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)),
        }
        command = [sys.executable, str(SIDE), str(folder), str(mebibytes), str(runs)]
        processes.append(subprocess.Popen([*command, str(out)], env=environment))
    for process in processes:
        if process.wait() != 0:
            raise SystemExit(f"{SIDE.name} failed")
    results: dict[str, Any] = json.loads(out.read_text())
    return results


def dd_seconds(folder: Path, ranks: int, size: int) -> float:
    """Seconds in which dd writes and syncs ``size`` bytes, a file for each rank."""
    count = size // ranks >> 20
    with tempfile.TemporaryDirectory(dir="/dev/shm") as source:
        data = Path(source) / "data"
        with data.open("wb") as file:
            for _ in range(count):
                file.write(os.urandom(1 << 20))
        begin = time.perf_counter()
        processes = [
            subprocess.Popen(
                ["dd", f"if={data}", f"of={folder}/dd-{rank}", "bs=4M", "conv=fsync"],
                stderr=subprocess.DEVNULL,
            )
            for rank in range(ranks)
        ]
        codes = [process.wait() for process in processes]
        seconds = time.perf_counter() - begin
    for path in folder.glob("dd-*"):
        path.unlink()
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    if any(codes):
        raise SystemExit("dd failed")
    return seconds


if __name__ == "__main__":
    main()
