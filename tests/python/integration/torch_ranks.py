"""What runs in the processes of a job of torch alone: FSDP2, AdamW and its checkpoints.

The model has the parameters of a job here and no forward: gradients are given. Its
state is keyed as torchtitan v0.2.2 keys it.
"""

from __future__ import annotations

import functools
import os
import pickle
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def factor(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup)


class TorchRun:
    """A run of torch; sharded where there are several ranks.

    Args:
        weights: all of them, whole.
    """

    def __init__(self, weights: dict[str, torch.Tensor], ranks: int = 1) -> None:
        self.model = nn.Module()
        for name, tensor in weights.items():
            *owners, last = name.split(".")
            module = self.model
            for owner in owners:
                if owner not in module._modules:
                    module.add_module(owner, nn.Module())
                module = module._modules[owner]
            module.register_parameter(last, nn.Parameter(tensor.clone()))
        self.mesh = init_device_mesh("cpu", (ranks,)) if ranks > 1 else None
        if self.mesh is not None:
            fully_shard(self.model, mesh=self.mesh)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-2, weight_decay=0.1, foreach=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, functools.partial(factor, warmup=2)
        )
        self.steps = 0

    def train(self, steps: int) -> None:
        """Gradients depend on the step and the order of parameters alone."""
        for _ in range(steps):
            self.steps += 1
            generator = torch.Generator().manual_seed(self.steps)
            for parameter in self.model.parameters():
                whole = torch.randn(parameter.shape, generator=generator)
                if self.mesh is not None:
                    whole = distribute_tensor(whole, self.mesh, [Shard(0)])
                parameter.grad = whole
            self.optimizer.step()
            self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        rank = dist.get_rank() if self.mesh else 0
        ranks = self.mesh.size() if self.mesh else 1
        data = {f"dp_rank_{rank}": pickle.dumps({}), "world_size": ranks}
        return {
            **get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(
                self.model, self.optimizer, options=FLAT
            ),
            "lr_scheduler": self.schedule.state_dict(),
            "dataloader": data,
            "train_state": {"step": self.steps, "ntokens_seen": 1000},
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Whole weights and moments, under the names of a run here. Collective."""

        def whole(tensor: Any) -> torch.Tensor:
            full = tensor.full_tensor() if self.mesh is not None else tensor
            return full.detach()  # type: ignore[no-any-return]

        tensors = {}
        for name, parameter in self.model.named_parameters():
            tensors[name] = whole(parameter)
            for moment in ("exp_avg", "exp_avg_sq"):
                state = self.optimizer.state[parameter][moment]
                tensors[f"optimizer.{moment}.{name}"] = whole(state)
        return tensors


def save_or_load(
    environment: dict[str, str],
    weights: dict[str, torch.Tensor],
    steps: int,
    path: str,
    out: str | None,
) -> None:
    """One of two ranks: train and save to ``path``, or load it and write to ``out``."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run = TorchRun(weights, dist.get_world_size())
    if out is None:
        run.train(steps)
        dcp.save(run.state_dict(), checkpoint_id=path)
    else:
        state = run.state_dict()  # makes the moments
        dcp.load(state, checkpoint_id=path)
        assert state["train_state"]["step"] == steps
        assert state["lr_scheduler"]["last_epoch"] == steps
        for key, value in state["optimizer"].items():
            assert not key.endswith(".step") or value == steps, key
        tensors = run.tensors()  # filled in place
        if dist.get_rank() == 0:
            torch.save(tensors, out)
    dist.destroy_process_group()
