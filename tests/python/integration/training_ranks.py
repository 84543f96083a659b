"""What runs in the processes of a test job: one rank, with a trainer of the test."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from trial_trainers import TRIAL_TRAINERS

from torchtitan_cpp.checkpoint import CheckpointManager
from torchtitan_cpp.finite import NotFiniteError
from torchtitan_cpp.group_ranks import GroupRanks
from torchtitan_cpp.parallel import Distributed
from torchtitan_cpp.train import main
from torchtitan_cpp.trainer import Trainer
from torchtitan_cpp.training_state import collect

STATE_FOLDER = "dumped"
"""Below job.dump_folder: what DumpingTrainer saw."""


class DumpingTrainer(Trainer):
    """Writes this rank's rows of all gradients and weights after every step."""

    def log(self, result: Any, learning_rate: float) -> None:
        super().log(result, learning_rate)
        shards = {
            shard.name: shard
            for group in self.model.applied.groups
            for shard in group.shards
        }
        folder = Path(self.job_config.job.dump_folder) / STATE_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "loss": float(result.loss),
                "grad_norm": float(result.grad_norm),
                "shapes": {name: list(s.global_shape) for name, s in shards.items()},
                "offsets": {name: list(s.offset) for name, s in shards.items()},
                "gradients": {n: s.gradient.clone() for n, s in shards.items()},
                "weights": {n: s.value.detach().clone() for n, s in shards.items()},
            },
            folder / f"step-{self.step}-rank-{self.world.rank}.pt",
        )


class ComparingTrainer(Trainer):
    """Tells how many groups of weights a step changed whose numbers are not finite."""

    before: list[torch.Tensor]

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        self.check_finite()  # the step before is compared with what was before it
        self.before = [group.master.clone() for group in self.model.applied.groups]
        super().train_step(microbatches)

    def check_finite(self) -> None:
        try:
            super().check_finite()
        except NotFiniteError:
            pairs = zip(self.model.applied.groups, self.before, strict=True)
            changed = [
                not torch.equal(group.master.nan_to_num(7.5), old.nan_to_num(7.5))
                for group, old in pairs
            ]
            print(f"changed groups: {sum(changed)}", flush=True)
            print(f"weights are unchanged: {not any(changed)}", flush=True)
            raise


class PoisoningTrainer(ComparingTrainer):
    """The last rank finds a NaN among its weights before step 3."""

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        last = self.world.rank == self.world.parallel_dims.world_size - 1
        if self.step == 3 and last:
            self.model.applied.groups[1].shards[2].value[0, 1] = float("nan")
        super().train_step(microbatches)


class SlowTrainer(Trainer):
    """Step 3 takes longer than any test."""

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        super().train_step(microbatches)
        if self.step == 3:
            print("step 3 goes on", flush=True)
            time.sleep(3600)


class FailingTrainer(Trainer):
    """Rank 1 fails in step 3, while the others wait for it."""

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        if self.step == 3 and self.world.rank == 1:
            raise RuntimeError("the disk of rank one is full")
        super().train_step(microbatches)


class StuckTrainer(Trainer):
    """Rank 1 does not come to step 3 any more."""

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        if self.step == 3 and self.world.rank == 1:
            time.sleep(3600)
        super().train_step(microbatches)


class ResavingTrainer(Trainer):
    """Saves the state it starts with below ``resaved``, before any step."""

    def train(self) -> None:
        settings = replace(
            self.job_config.checkpoint, folder="resaved", load_step=-1, load_only=False
        )
        config = replace(self.job_config, checkpoint=settings)
        adapter = self.spec.state_dict_adapter
        manager = CheckpointManager(
            config.checkpoint,
            base_folder=config.job.dump_folder,
            ranks=GroupRanks(self.world),
            adapter=adapter(self.model.args, None) if adapter else None,
        )
        manager.save(self.step, collect(self))
        super().train()


class FullDiskTrainer(Trainer):
    """Rank 1 may write one KiB to a file and no more while it saves step 2."""

    def save(self, *, stopping: bool = False) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.step == 2 and self.world.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        try:
            super().save(stopping=stopping)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


class SlowSavingTrainer(Trainer):
    """Rank 0 publishes a checkpoint for longer than any rank waits in a step."""

    def save(self, *, stopping: bool = False) -> None:
        assert isinstance(self.world.distributed, Distributed)
        watch = self.world.distributed.watch
        before, watch.timeout_seconds = watch.timeout_seconds, 0.5
        self.checkpointer._fault_hook = self.take_time
        super().save(stopping=stopping)
        watch.timeout_seconds = before

    @staticmethod
    def take_time(point: str) -> None:
        if point == "before rename":
            time.sleep(2)


class HeldSavingTrainer(Trainer):
    """The save of step 2 is written only once step 4 has changed the weights."""

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        ranks: Any = self.checkpointer._saves._ranks
        if self.step == 1:
            self.gate = threading.Event()
            self.gather = ranks.all_gather_bytes
            ranks.all_gather_bytes = self.gather_later
        super().train_step(microbatches)
        if self.step == 4:
            self.gate.set()

    def gather_later(self, data: bytes) -> list[bytes]:
        assert self.gate.wait(timeout=60)
        return self.gather(data)


class FailingSaveTrainer(Trainer):
    """Rank 0 cannot publish the checkpoint of step 2; no other rank would end."""

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        self.checkpointer._fault_hook = self.fail if self.world.rank == 0 else None
        if self.step > 3:
            self.checkpointer.wait_for_save()  # so that a step finds it, not the end
        super().train_step(microbatches)

    @staticmethod
    def fail(point: str) -> None:
        if point == "before rename":
            raise OSError(28, "No space left on device")


class DyingSaveTrainer(Trainer):
    """Rank 1 dies in the background, when the save of step 2 begins."""

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        if self.world.rank == 1:
            ranks: Any = self.checkpointer._saves._ranks
            ranks.all_gather_bytes = lambda data: os.kill(os.getpid(), signal.SIGKILL)
        super().train_step(microbatches)


class FailingBesideSaveTrainer(FailingTrainer):
    """The save of step 2 is being published for longer than rank 1 lives."""

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        self.checkpointer._fault_hook = SlowSavingTrainer.take_time
        super().train_step(microbatches)


TRAINERS: dict[str, type[Trainer]] = {
    "plain": Trainer,
    "dumping": DumpingTrainer,
    "comparing": ComparingTrainer,
    "resaving": ResavingTrainer,
    "full_disk": FullDiskTrainer,
    "poisoning": PoisoningTrainer,
    "failing": FailingTrainer,
    "stuck": StuckTrainer,
    "slow": SlowTrainer,
    "slow_saving": SlowSavingTrainer,
    **TRIAL_TRAINERS,
    "held_saving": HeldSavingTrainer,
    "failing_save": FailingSaveTrainer,
    "dying_save": DyingSaveTrainer,
    "failing_beside_save": FailingBesideSaveTrainer,
}


def become_rank(environment: dict[str, str], output: str) -> None:
    """Make this process one that torchrun started, with one thread.

    Args:
        environment: replaces the variables that torchrun sets; a folder that
            PYTHONPATH names there is searched for modules first.
        output: file that stdout and stderr go to.
    """
    for name in (
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "NGPU", "LOG_RANK"),
        "TORCHELASTIC_USE_AGENT_STORE",
    ):
        os.environ.pop(name, None)
    os.environ.update(environment)
    if "PYTHONPATH" in environment:
        sys.path.insert(0, environment["PYTHONPATH"])
    os.environ["OMP_NUM_THREADS"] = "1"
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)


def run_rank(
    arguments: Sequence[str], environment: dict[str, str], output: str, trainer: str
) -> None:
    """The whole life of one rank: as ``python -m torchtitan_cpp.train`` under torchrun.

    Args:
        environment, output: as in become_rank.
        trainer: name in TRAINERS.
    """
    become_rank(environment, output)
    code = main(arguments, trainer_class=TRAINERS[trainer])
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
