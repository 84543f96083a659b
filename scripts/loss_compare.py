#!/usr/bin/env python3
"""Compares the losses of two trainings: two commits, two configurations, or both.

    scripts/loss_compare.py main my_branch
    scripts/loss_compare.py . . --baseline-ngpus 1 --test-ngpus 2 --tolerance 1e-4 \\
        --test-options '--parallelism.tensor_parallel_degree=2'
    scripts/loss_compare.py . . --assert-equal --export-result losses.txt
    scripts/loss_compare.py . . --assert-equal --import-result losses.txt

"." is the tree as it is; any other name is a commit, checked out beside it, built and
trained by its scripts/train.sh. Both sides run with --debug.deterministic and
--debug.seed=42 and, unless --no-seed-checkpoint, from the same initial weights, which
the baseline writes on one rank. Losses are read from metrics.jsonl: every digit counts.

Exit status: 0; 1 if losses differ by more than was asked for; 2 if a side did not run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
FIXED = ("--debug.deterministic", "--debug.seed=42", "--metrics.log_freq=1")
ONE_RANK = tuple(
    f"--parallelism.{name}_degree=1"
    for name in (
        "data_parallel_replicate",
        "data_parallel_shard",
        "context_parallel",
        "tensor_parallel",
        "pipeline_parallel",
    )
)
SEED = (
    "--checkpoint.enable",
    "--checkpoint.create_seed_checkpoint",
    "--checkpoint.folder=checkpoint",
)
FROM_SEED = (
    "--checkpoint.enable",
    "--checkpoint.load_only",
    "--checkpoint.initial_load_model_only",
)
Losses = dict[int, float]
"""By step."""


class Failed(Exception):
    """A side did not run, or a file of losses cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two trainings."""

    name: str
    commit: str
    config: str
    """Empty: the packaged debug job."""
    options: Sequence[str]
    train_file: str
    ngpus: int


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train both sides, compare; the exit status."""
    own = parse(argv)
    baseline, test = sides(own)
    try:
        with ExitStack() as stack:
            folder = Path(own.output_folder or stack.enter_context(temporary_folder()))
            folder.mkdir(parents=True, exist_ok=True)
            found = run_sides(baseline, test, own, folder.resolve(), stack)
        if own.import_result:
            found["imported"] = read_losses(Path(own.import_result))
        differ = compare(found, own)
        if own.export_result and not differ:
            write_losses(Path(own.export_result), found["baseline"])
    except Failed as error:
        print(f"loss_compare.py: {error}", file=sys.stderr)
        return 2
    return int(differ)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags, torchtitan's and --tolerance."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("baseline_commit", help='commit of the baseline, or "."')
    add("test_commit", help='commit of the test, or "."')
    add("--baseline-config", default="", help="TOML file; default: the debug job")
    add("--test-config", default="", help="default: that of the baseline")
    add(
        "--baseline-options",
        default="",
        help="further flags of the training, in quotes",
    )
    add("--test-options", default="", help="of the test")
    add(
        "--baseline-train-file",
        default="torchtitan_cpp.train",
        help="module that trains",
    )
    add("--test-train-file", default="", help="default: that of the baseline")
    add("--baseline-ngpus", type=int, default=1, help="ranks (default: %(default)s)")
    add("--test-ngpus", type=int, default=1, help="ranks (default: %(default)s)")
    add(
        "--steps", type=int, default=100, help="of each training (default: %(default)s)"
    )
    add(
        "--no-seed-checkpoint", action="store_true", help="initial weights by seed only"
    )
    add("--output-folder", default="", help="keep the files of both sides and a table")
    add(
        "--job-dump-folder",
        default="outputs",
        help="name of a side's dump folder in the output folder (default: %(default)s)",
    )
    add("--assert-equal", action="store_true", help="fail unless all losses are equal")
    add(
        "--tolerance",
        type=float,
        help="fail if a loss differs by more than this share of the baseline's",
    )
    add(
        "--export-result", default="", help="write '{step} {loss}' lines if all is well"
    )
    add("--import-result", default="", help="compare with such a file, too")
    own = parser.parse_args(joined(sys.argv[1:] if argv is None else argv))
    if own.assert_equal and own.tolerance is not None:
        parser.error("--assert-equal and --tolerance exclude each other")
    if own.tolerance is not None and not 0 <= own.tolerance < math.inf:
        parser.error(f"--tolerance: expected 0 or more, found {own.tolerance:g}")
    asks = own.assert_equal or own.tolerance is not None
    if (own.export_result or own.import_result) and not asks:
        parser.error(
            "--export-result and --import-result need --assert-equal or --tolerance"
        )
    for name in ("baseline_ngpus", "test_ngpus", "steps"):
        if getattr(own, name) < 1:
            flag = name.replace("_", "-")
            parser.error(f"--{flag}: expected 1 or more, found {getattr(own, name)}")
    return own


def joined(argv: Sequence[str]) -> list[str]:
    """``argv`` with the flags of a side in one word with the name before them.

    argparse takes a word that begins with ``--`` for a flag of its own.
    """
    words: list[str] = []
    for word in argv:
        if words and words[-1] in ("--baseline-options", "--test-options"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def sides(own: argparse.Namespace) -> tuple[Side, Side]:
    """What is trained."""
    baseline = Side(
        name="baseline",
        commit=own.baseline_commit,
        config=own.baseline_config,
        options=shlex.split(own.baseline_options),
        train_file=own.baseline_train_file,
        ngpus=own.baseline_ngpus,
    )
    test = Side(
        name="test",
        commit=own.test_commit,
        config=own.test_config or own.baseline_config,
        options=shlex.split(own.test_options),
        train_file=own.test_train_file or own.baseline_train_file,
        ngpus=own.test_ngpus,
    )
    return baseline, test


def run_sides(
    baseline: Side, test: Side, own: argparse.Namespace, folder: Path, stack: ExitStack
) -> dict[str, Losses]:
    """Losses by side; a test that is the baseline in all is not run again."""
    same = vars(test) | {"name": ""} == vars(baseline) | {"name": ""}
    trees = {
        commit: HERE if commit == "." else stack.enter_context(checkout(commit))
        for commit in dict.fromkeys([baseline.commit, test.commit])
    }
    flags = [*FIXED, f"--training.steps={own.steps}"]
    if not own.no_seed_checkpoint:
        seed = folder / "seed"
        train(
            baseline,
            trees[baseline.commit],
            [*FIXED, *ONE_RANK, *SEED, f"--job.dump_folder={seed}"],
            log=folder / "seed.log",
            ngpus=1,
        )
        step = seed / "checkpoint" / "step-0"
        flags += [*FROM_SEED, f"--checkpoint.initial_load_path={step}"]
    found: dict[str, Losses] = {}
    # Only an imported result makes a baseline alone worth while.
    for side in [baseline] if same and own.import_result else [baseline, test]:
        dump = folder / side.name / own.job_dump_folder
        if dump.exists():
            raise Failed(f"{dump} exists already; choose another --output-folder")
        train(
            side,
            trees[side.commit],
            [*flags, f"--job.dump_folder={dump}"],
            log=folder / f"{side.name}_training.log",
            ngpus=side.ngpus,
        )
        found[side.name] = read_metrics(dump / "metrics.jsonl", own.steps)
        write_losses(folder / f"{side.name}_losses.txt", found[side.name])
    return found


def train(
    side: Side, tree: Path, flags: Sequence[str], *, log: Path, ngpus: int
) -> None:
    """Run one training to its end; its output goes to ``log``."""
    flags = [*side.options, *flags]
    config = str(Path(side.config).resolve()) if side.config else ""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if tree == HERE:
        start = [sys.executable]
        if ngpus > 1:
            start += ["-m", "torch.distributed.run", "--standalone"]
            start += ["--nproc_per_node", str(ngpus)]
        command = [*start, "-m", side.train_file]
        command += ["--job.config_file", config] if config else []
    else:
        command = [str(tree / "scripts" / "train.sh")]
        environment |= {"NGPU": str(ngpus), "TRAIN_FILE": side.train_file}
        environment |= {"CONFIG_FILE": config}
        environment.pop("PYTHONPATH", None)  # which may lead back to this tree
    command += flags
    print(f"{side.name}: {shlex.join(command)}", flush=True)
    with log.open("w") as output:
        code = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        ).returncode
    if code != 0:
        last = "\n".join(log.read_text().splitlines()[-15:])
        raise Failed(f"{side.name} ended with exit status {code} ({log}):\n{last}")


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A worktree of the commit, which is removed in the end."""
    with temporary_folder() as folder:
        tree = folder / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def git(*arguments: str) -> None:
    """In this repository."""
    done = subprocess.run(
        ["git", "-C", str(HERE), *arguments], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Failed(f"git {shlex.join(arguments)}: {done.stderr.strip()}")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Gone in the end."""
    with tempfile.TemporaryDirectory(prefix="loss_compare_") as folder:
        yield Path(folder)


def read_metrics(path: Path, steps: int) -> Losses:
    """The loss of every step of a run."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        losses = {int(line["step"]): float(line["loss"]) for line in lines}
    except (OSError, ValueError, KeyError) as error:
        raise Failed(f"{path}: no losses: {error!r}") from error
    if missing := [step for step in range(1, steps + 1) if step not in losses]:
        raise Failed(f"{path}: no loss of step {missing[0]}")
    return {step: losses[step] for step in range(1, steps + 1)}


def read_losses(path: Path) -> Losses:
    """A file that ``write_losses`` has written."""
    try:
        pairs = [line.split() for line in path.read_text().splitlines() if line.strip()]
        return {int(step): float(loss) for step, loss in pairs}
    except (OSError, ValueError) as error:
        raise Failed(f"{path}: expected '{{step}} {{loss}}' lines: {error}") from error


def write_losses(path: Path, losses: Losses) -> None:
    """One line a step, every digit."""
    path.write_text("".join(f"{step} {loss!r}\n" for step, loss in losses.items()))


def compare(found: Mapping[str, Losses], own: argparse.Namespace) -> bool:
    """Print the steps and what they differ in; whether that is more than was asked."""
    names = list(found)
    others = names[1:]
    print(
        f"\n{'step':>6} " + " ".join(f"{name:>20}" for name in names) + "   difference"
    )
    worst, total, exceeds = 0.0, 0.0, False
    baseline = found["baseline"]
    for name in others:
        if found[name].keys() != baseline.keys():
            raise Failed(
                f"{name} has losses of {len(found[name])} steps, the baseline of "
                f"{len(baseline)}"
            )
    for step, loss in baseline.items():
        values = [found[name][step] for name in others]
        # NaN differs from everything, itself included.
        shares = [
            0.0 if value == loss else abs(value - loss) / max(abs(loss), 1e-300)
            for value in values
        ]
        share = max(shares, key=lambda each: math.inf if math.isnan(each) else each)
        worst = share if math.isnan(share) else max(worst, share)
        total += share
        exceeds = exceeds or not share <= (own.tolerance or 0.0)
        shown = " ".join(f"{value:>20.12g}" for value in [loss, *values])
        print(f"{step:>6} {shown}   {share:.3e}")
    print(
        f"largest difference {worst:.3e} of the loss, mean {total / len(baseline):.3e}"
    )
    if own.tolerance is None and not own.assert_equal:
        return False
    asked = "equal" if own.assert_equal else f"within {own.tolerance:g}"
    print(f"losses are {'NOT ' if exceeds else ''}{asked}")
    return exceeds


if __name__ == "__main__":
    sys.exit(main())
