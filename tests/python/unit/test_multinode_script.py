"""scripts/multinode_trainer.slurm: what it would start on a cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from script_modules import SCRIPTS

SCRIPT = SCRIPTS / "multinode_trainer.slurm"
JOB = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "gpu[3-5]",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_GPUS_ON_NODE": "4",
}


def submit(
    folder: Path, *flags: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run it with programs of SLURM that only say what they were asked."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, line in {
        "scontrol": '[ "$*" = "show hostnames gpu[3-5]" ] && seq -f gpu%g 3 5',
        "srun": 'printf "%s\\n" "srun" "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    kept = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder)}
    return subprocess.run(
        ["bash", str(SCRIPT), *flags],
        env={**kept, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_one_torchrun_a_machine_meets_the_others_at_the_first(tmp_path: Path) -> None:
    done = submit(tmp_path, "--training.steps", "9 9", **JOB)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "3 machines x 4 ranks, meeting at gpu3:29500",
        *("srun", "--kill-on-bad-exit=1", "torchrun"),
        *("--nnodes", "3", "--nproc_per_node", "4"),
        *("--rdzv_id", "77", "--rdzv_backend", "c10d"),
        *("--rdzv_endpoint", "gpu3:29500"),
        *("-m", "torchtitan_cpp.train"),
        *("--job.config_file", f"{tmp_path}/configs/llama3/llama3_8b.toml"),
        *("--training.steps", "9 9"),
    ]


def test_variables_choose_ranks_port_module_and_configuration(tmp_path: Path) -> None:
    done = submit(
        tmp_path,
        **JOB,
        NGPU="8",
        MASTER_PORT="1234",
        TRAIN_FILE="mine.train",
        CONFIG_FILE="my run.toml",
    )
    words = done.stdout.splitlines()
    assert words[0] == "3 machines x 8 ranks, meeting at gpu3:1234"
    assert words[words.index("-m") + 1 :] == [
        *("mine.train", "--job.config_file", "my run.toml")
    ]


def test_help_explains_it_and_starts_nothing(tmp_path: Path) -> None:
    done = submit(tmp_path, "--help")
    assert done.returncode == 0
    assert "sbatch --nodes 16" in done.stdout and "CONFIG_FILE" in done.stdout
    assert "#" not in done.stdout and "srun" not in done.stdout


@pytest.mark.parametrize("missing", ["SLURM_JOB_ID", "SLURM_JOB_NODELIST"])
def test_outside_of_a_job_it_says_so(missing: str, tmp_path: Path) -> None:
    job = {name: value for name, value in JOB.items() if name != missing}
    done = submit(tmp_path, **job)
    assert done.returncode == 2
    assert f"{missing} is not set; submit it by sbatch" in done.stderr


def test_its_default_configuration_and_options_of_sbatch_exist() -> None:
    text = SCRIPT.read_text()
    assert (SCRIPTS.parent / "configs" / "llama3" / "llama3_8b.toml").is_file()
    options = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    code = text.index("set -euo pipefail")
    assert options and text.index(options[-1]) < code  # sbatch reads no further
