"""One run of torchtitan's parts, started by dcp.py: run_peer.py FOLDER OUT EXCLUDED.

Its Transformer, FSDP2, optimizer, schedule, loader and checkpoint manager, as its
trainer uses them; its trainer itself asks for a GPU. Continues from the newest
checkpoint in FOLDER, if there is one, saves step 4 otherwise, and writes the losses to
OUT.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.device_mesh
import torch.distributed.fsdp as fsdp
from tokens import (
    LEARNING_RATE,
    ROWS,
    SAVED_STEP,
    SEQ_LEN,
    WARMUP_STEPS,
    tokens,
)
from torch.utils.data import IterableDataset


class Counting(IterableDataset):  # type: ignore[type-arg]
    """Counts; its position is the state of the loader."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.position += 1
            yield self.position

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class TrainState:
    """As the trainer's own."""

    step = 0
    ntokens_seen = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step, "ntokens_seen": self.ntokens_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step, self.ntokens_seen = state["step"], state["ntokens_seen"]


def main() -> None:
    """Build, load, train, save."""
    folder, out, excluded = sys.argv[1:]
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = build_model(ranks)
    configs = import_module("torchtitan.config")
    optimizers = import_module("torchtitan.components.optimizer").build_optimizers(
        [model],
        configs.Optimizer(lr=LEARNING_RATE),
        SimpleNamespace(ep_enabled=False, pp_enabled=False),
    )
    schedulers = import_module(
        "torchtitan.components.lr_scheduler"
    ).build_lr_schedulers(
        optimizers, configs.LRScheduler(warmup_steps=WARMUP_STEPS), 2 * SAVED_STEP
    )
    loader = import_module("torchtitan.components.dataloader").ParallelAwareDataloader(
        Counting(), dp_rank=rank, dp_world_size=ranks, batch_size=1
    )
    train_state = TrainState()
    checkpoints = import_module("torchtitan.components.checkpoint").CheckpointManager(
        loader,
        [model],
        optimizers,
        schedulers,
        states={"train_state": train_state},
        checkpoint_config=configs.Checkpoint(
            enable=True,
            interval=SAVED_STEP,
            keep_latest_k=0,
            exclude_from_loading=[excluded] if excluded else [],
        ),
        sd_adapter=None,
        base_folder=folder,
    )
    loaded = checkpoints.load()
    if loaded and train_state.step != SAVED_STEP:
        raise SystemExit(f"loaded step {train_state.step}")
    losses = []
    data = iter(loader)
    while train_state.step < 2 * SAVED_STEP:
        train_state.step += 1
        train_state.ntokens_seen += ROWS * SEQ_LEN
        position = int(next(data))
        loss = step_of(model, optimizers, tokens(train_state.step, rank, ranks))
        schedulers.step()
        losses.append(loss)
        if train_state.step == SAVED_STEP:
            checkpoints.save(SAVED_STEP)
    if rank == 0:
        results = {
            "loaded": loaded,
            "losses": losses,
            "data_position": position,
            "tokens_seen": train_state.ntokens_seen,
        }
        Path(out).write_text(json.dumps(results))
    dist.destroy_process_group()


def build_model(ranks: int) -> Any:
    """Its debug model, fully sharded, from its own initial weights."""
    llama = import_module("torchtitan.models.llama3")
    args = llama.llama3_args["debugmodel"]
    args.max_seq_len = SEQ_LEN
    model = llama.Transformer(args)
    with torch.no_grad():
        model.init_weights()
    import_module("torchtitan.models.llama3.infra.parallelize").apply_fsdp(
        model,
        dist.device_mesh.init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",)),
        param_dtype=torch.float32,
        reduce_dtype=torch.float32,
        pp_enabled=False,
    )
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            # Gloo has no sum that scales, which it would use for a factor of 1.
            module.set_force_sum_reduction_for_comms(True)
    return model


def step_of(model: Any, optimizers: Any, ids: torch.Tensor) -> float:
    """One step; the loss is that of all ranks."""
    loss_sum = import_module("torchtitan.components.loss").cross_entropy_loss
    clip = import_module("torchtitan.distributed.utils").clip_grad_norm_
    optimizers.zero_grad()
    loss = loss_sum(model(ids[:, :-1].contiguous()), ids[:, 1:].contiguous())
    loss = loss / (ROWS * SEQ_LEN)
    loss.backward()
    clip(list(model.parameters()), 1.0, foreach=True)
    optimizers.step()
    loss = loss.detach()
    dist.all_reduce(loss)
    return float(loss)


main()
