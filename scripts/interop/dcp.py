"""Checkpoints between torchtitan v0.2.2 and this package, in both directions.

    pip install torchtitan==0.2.2 torch (in a venv of its own)
    python scripts/interop/dcp.py --peer-python peer/bin/python

Each program trains 4 steps, saves in the format of torch.distributed.checkpoint and
goes on; the other one continues from the checkpoint, in several layouts here and with
FSDP2 on two ranks there. Prints a line for each continuation: the largest relative
difference of its losses from those of the program that was not stopped. Fails above
--tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tokens import LEARNING_RATE, ROWS, SAVED_STEP, SEQ_LEN, WARMUP_STEPS

HERE = Path(__file__).parent
LAYOUTS = {
    "one rank": (1, []),
    "fsdp 2": (2, []),
    "fsdp 4": (4, []),
    "hsdp 2x2": (4, ["data_parallel_replicate_degree=2"]),
    "tp 2": (2, ["tensor_parallel_degree=2"]),
    "pp 2": (2, ["pipeline_parallel_degree=2"]),
    "cp 2": (2, ["context_parallel_degree=2"]),
    "fsdp 2, tp 2": (4, ["tensor_parallel_degree=2"]),
}


def main() -> int:
    """Both directions; 0 if every loss agrees."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer-python", required=True, help="python of the peer's venv"
    )
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument(
        "--layouts", nargs="*", default=list(LAYOUTS), choices=LAYOUTS, metavar="LAYOUT"
    )
    args = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        expected = run_peer(args.peer_python, folder / "peer", 2)
        for layout in args.layouts:
            target = folder / f"from peer to {layout}"
            shutil.copytree(folder / "peer/checkpoint", target / "checkpoint")
            found = run_ours(target, layout)
            worst = max(worst, tell(f"torchtitan -> {layout}", expected, found))
        for layout in args.layouts:
            source = folder / f"from {layout}"
            expected = run_ours(source, layout)
            last = source / f"checkpoint/step-{2 * SAVED_STEP}"
            shutil.rmtree(last)
            ranks, degrees = LAYOUTS[layout]
            # torchtitan cannot divide the position in the data among other ranks.
            alike = ranks == 2 and not degrees
            excluded = "" if alike else "dataloader"
            found = run_peer(args.peer_python, source, 2, excluded)
            worst = max(worst, tell(f"{layout} -> torchtitan", expected, found))
    print(f"largest relative difference: {worst:.1e}, allowed: {args.tolerance:.0e}")
    return 0 if worst <= args.tolerance else 1


def tell(what: str, expected: list[float], found: list[float]) -> float:
    """Compare the steps behind the checkpoint."""
    if len(found) != SAVED_STEP:
        raise SystemExit(f"{what}: expected {SAVED_STEP} steps, found {len(found)}")
    pairs = zip(expected[-SAVED_STEP:], found, strict=True)
    difference = max(abs(a - b) / abs(a) for a, b in pairs)
    shown = " ".join(f"{loss:.5f}" for loss in found)
    print(f"{what:28} {shown}  differs by {difference:.1e}", flush=True)
    return difference


def run_ours(folder: Path, layout: str) -> list[float]:
    """Losses by step, of the steps that were run."""
    ranks, degrees = LAYOUTS[layout]
    data_ranks = ranks // (2 if any("replicate" not in d for d in degrees) else 1)
    flags = [
        f"--job.dump_folder={folder}",
        "--model.flavor=debugmodel",
        "--activation_checkpoint.mode=none",
        f"--training.seq_len={SEQ_LEN}",
        f"--training.local_batch_size={ROWS // data_ranks}",
        f"--training.steps={2 * SAVED_STEP}",
        "--training.mixed_precision_param=float32",
        f"--optimizer.lr={LEARNING_RATE}",
        f"--lr_scheduler.warmup_steps={WARMUP_STEPS}",
        "--metrics.log_freq=1",
        "--checkpoint.enable",
        "--checkpoint.format=dcp",
        f"--checkpoint.interval={SAVED_STEP}",
        "--checkpoint.no-last_save_model_only",
        *(f"--parallelism.{degree}" for degree in degrees),
    ]
    run(sys.executable, ranks, [str(HERE / "run_ours.py"), *flags])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [float(json.loads(line)["loss"]) for line in lines if "loss" in line]


def run_peer(python: str, folder: Path, ranks: int, excluded: str = "") -> list[float]:
    """Losses by step, of the steps that were run."""
    out = folder / "peer.json"
    folder.mkdir(exist_ok=True)
    run(python, ranks, [str(HERE / "run_peer.py"), str(folder), str(out), excluded])
    results = json.loads(out.read_text())
    losses: list[float] = results["losses"]
    # The other's data begins anew; the count of tokens goes on.
    if results["data_position"] != len(losses):
        raise SystemExit(f"the loader is at {results['data_position']}")
    if results["tokens_seen"] != 2 * SAVED_STEP * ROWS * SEQ_LEN:
        raise SystemExit(f"tokens seen: {results['tokens_seen']}")
    return losses


def run(python: str, ranks: int, command: list[str]) -> None:
    """A job of torchrun; its output is shown only where it fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [python, *launcher, f"--nproc-per-node={ranks}", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{command[0]} ended with {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
