"""Trainers of trials: they stop, die and tell in places that variables name."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchtitan_cpp.checkpoint import CheckpointManager
from torchtitan_cpp.train import main
from torchtitan_cpp.trainer import Trainer
from torchtitan_cpp.training_state import GroupRanks, collect

PHASE_SECONDS = 1.0


class PhaseTrainer(Trainer):
    """Tells when it is in ``PHASE``, and takes its time there."""

    def tell(self, phase: str) -> None:
        if os.environ["PHASE"] == phase:
            print(f"in {phase}", flush=True)
            time.sleep(PHASE_SECONDS)

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        super().train_step(microbatches)
        if self.step == 2:
            self.tell("step")

    def evaluate(
        self, inputs: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> tuple[float, float]:
        self.tell("validation")
        return super().evaluate(inputs, labels)

    def save(self, *, stopping: bool = False) -> None:
        self.checkpointer._fault_hook = self.reach
        super().save(stopping=stopping)

    def reach(self, point: str) -> None:
        if point == "before rename":
            self.tell("save")

    def load(self) -> None:
        self.tell("load")
        super().load()


class IdleTrainer(Trainer):
    """Rank 0 does not come back from its first save."""

    def save(self, *, stopping: bool = False) -> None:
        self.checkpointer._fault_hook = self.reach
        super().save(stopping=stopping)

    @staticmethod
    def reach(point: str) -> None:
        if point == "before rename":
            time.sleep(3600)


class FlippingTrainer(Trainer):
    """A bit of one weight changes on rank ``FLIPPED`` before step 3."""

    part = "attention.w"

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        if self.step == 3 and self.world.rank == int(os.environ["FLIPPED"]):
            shards = [s for g in self.model.applied.groups for s in g.shards]
            value = next(s.value for s in shards if self.part in s.name).detach()
            value.view(-1).view(torch.int32)[1] ^= 1
        super().train_step(microbatches)


class FlippingNormTrainer(FlippingTrainer):
    """As FlippingTrainer, in a weight of a norm."""

    part = "norm.weight"


class FlippingMomentTrainer(FlippingTrainer):
    """As FlippingTrainer, a higher bit of a moment, which no rounding takes away."""

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        if self.step == 3 and self.world.rank == int(os.environ["FLIPPED"]):
            moments = self.optimizers.state()["exp_avg"]
            value = next(moments[name] for name in moments if self.part in name)
            value.view(-1).view(torch.int32)[1] ^= 1 << 22
        Trainer.train_step(self, microbatches)


class ElasticTrainer(Trainer):
    """Writes which rows each step reads and what it loads and saves, and dies.

    Below ``job.dump_folder``, with ``ATTEMPT`` in their names: ``rows-*.jsonl``, and
    native checkpoints of what was loaded and of what was saved. ``KILL`` is "", or a
    phase (step, save, saved) and a step: "save 4".
    """

    def load(self) -> None:
        super().load()
        if self.step:
            self.copy_state("loaded")

    def batch_generator(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        groups = self.world.groups
        for inputs, labels in super().batch_generator():
            # Ranks of the other axes read the same rows.
            if all(groups[axis].rank == 0 for axis in ("cp", "tp", "pp")):
                line = {"step": self.step + 1, "rows": inputs["input"].tolist()}
                name = f"rows-{os.environ['ATTEMPT']}-{self.world.rank}.jsonl"
                with (Path(self.job_config.job.dump_folder) / name).open("a") as file:
                    file.write(json.dumps(line) + "\n")
            yield inputs, labels

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        self.die_in("step")
        super().train_step(microbatches)

    def save(self, *, stopping: bool = False) -> None:
        is_due = self._saves_now()
        self.checkpointer._fault_hook = self.reach
        super().save(stopping=stopping)
        if is_due:
            self.copy_state("saved")
            self.die_in("saved")

    def reach(self, point: str) -> None:
        if point == "before rename":
            self.die_in("save")

    def die_in(self, phase: str) -> None:
        if os.environ["KILL"] == f"{phase} {self.step}":
            os.kill(os.getpid(), signal.SIGKILL)

    def copy_state(self, name: str) -> None:
        settings = replace(
            self.job_config.checkpoint,
            folder=f"{name}-{os.environ['ATTEMPT']}",
            format="native",
            keep_latest_k=0,
        )
        manager = CheckpointManager(
            settings,
            base_folder=self.job_config.job.dump_folder,
            ranks=GroupRanks(self.world),
        )
        manager.save(self.step, collect(self))


TRIAL_TRAINERS: dict[str, type[Trainer]] = {
    "phases": PhaseTrainer,
    "idle": IdleTrainer,
    "flipping": FlippingTrainer,
    "flipping_moment": FlippingMomentTrainer,
    "flipping_norm": FlippingNormTrainer,
    "elastic": ElasticTrainer,
}


def run_phases(arguments: list[str]) -> Any:
    """What torchrun starts: a rank that tells how it ends."""
    code = main(arguments, trainer_class=PhaseTrainer)
    print(f"rank {os.environ['RANK']} exits with {code}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(run_phases(sys.argv[1:]))
