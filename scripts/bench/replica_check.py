"""What ``debug.replica_check_interval`` costs, printed as JSON.

``torchrun --nproc-per-node 2 scripts/bench/replica_check.py [flags]`` trains two
replicas of the packaged debug job, or what the flags say, and times steps and checks.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from typing import Any

from torchtitan_cpp.train import main
from torchtitan_cpp.trainer import Trainer
from torchtitan_cpp.training_state import tensor_entries

INTERVAL = 10


class TimedTrainer(Trainer):
    """Times every step and every check, and tells at the end."""

    def train(self) -> None:
        self.step_seconds: list[float] = []
        self.check_seconds: list[float] = []
        super().train()
        steps = self.step_seconds[INTERVAL:]  # the first ones warm up
        checks = self.check_seconds[1:]
        if self.world.rank == 0:
            step, check = statistics.median(steps), statistics.median(checks)
            result = {
                "ranks": self.world.parallel_dims.world_size,
                "interval": INTERVAL,
                "numbers_hashed": sum(entry.numel for entry in tensor_entries(self)),
                "step_ms": round(1e3 * step, 3),
                "check_ms": round(1e3 * check, 3),
                "percent_of_a_step": round(100 * check / (INTERVAL * step), 4),
            }
            print(json.dumps(result), flush=True)

    def train_step(self, microbatches: list[dict[str, Any]]) -> None:
        started = time.perf_counter()
        super().train_step(microbatches)
        self.check_finite()
        self.step_seconds.append(time.perf_counter() - started)

    def check_replicas(self) -> None:
        if not self.replica_check.is_due(self.step):
            return
        # Ranks that come late are not part of the check.
        self.world.groups["world"].barrier().wait()
        started = time.perf_counter()
        super().check_replicas()
        self.check_seconds.append(time.perf_counter() - started)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            f"--job.dump_folder={folder}",
            "--training.steps=60",
            "--parallelism.data_parallel_replicate_degree=2",
            "--parallelism.data_parallel_shard_degree=1",
            *sys.argv[1:],
            f"--debug.replica_check_interval={INTERVAL}",
        ]
        sys.exit(main(flags, trainer_class=TimedTrainer))
