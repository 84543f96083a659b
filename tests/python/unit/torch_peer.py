"""A model trained by torch alone, its state keyed as torchtitan v0.2.2 keys it."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import torch
from checkpoint_ranks import Grid, state_of
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from torchtitan_cpp.checkpoint import TorchSettings, TrainingState

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Model(nn.Module):
    """Names as in a Llama; sizes that three ranks do not share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(7, 5)
        self.layers = nn.ModuleDict({"0": nn.Linear(5, 4, bias=False)})
        self.norm = nn.RMSNorm(5)


def factor(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup)


class Peer:
    """What a torchtitan trainer holds."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = Model()
        for parameter in self.model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.1, betas=(0.8, 0.9), weight_decay=0.2
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, functools.partial(factor, warmup=4)
        )
        self.step = 0

    def train(self, steps: int) -> Peer:
        """Gradients depend on the number of the step alone."""
        for _ in range(steps):
            self.step += 1
            generator = torch.Generator().manual_seed(100 + self.step)
            for parameter in self.model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            self.optimizer.step()
            self.scheduler.step()
        return self

    def state_dict(self) -> dict[str, Any]:
        optimizer = get_optimizer_state_dict(self.model, self.optimizer, options=FLAT)
        data = {"dp_rank_0": pickle.dumps({"position": 5}), "world_size": 1}
        return {
            **get_model_state_dict(self.model),
            "optimizer": optimizer,
            "lr_scheduler": self.scheduler.state_dict(),
            "dataloader": data,
            "train_state": {"step": self.step, "ntokens_seen": 64 * self.step},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        names = dict(self.model.named_parameters())
        weights = {name: state[name] for name in names}
        set_model_state_dict(self.model, weights)
        set_optimizer_state_dict(
            self.model,
            self.optimizer,
            optim_state_dict=state["optimizer"],
            options=FLAT,
        )
        self.scheduler.load_state_dict(state["lr_scheduler"])
        self.step = state["train_state"]["step"]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and moments under the names of a run here."""
        tensors = {n: p.detach() for n, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                value = self.optimizer.state[parameter][moment]
                tensors[f"optimizer.{moment}.{name}"] = value
        return tensors

    def scalars(self) -> dict[str, Any]:
        """Of a run here after as many steps."""
        seen = {"step": self.step, "num_tokens_seen": 64 * self.step}
        return {
            "train_state": seen,
            "lr_scheduler": {"last_epoch": self.step},
            "optimizer_step": self.step,
        }

    def own_state(self, grid: Grid, rank: int, *, zeros: bool = False) -> TrainingState:
        """The same state as a rank of a run here holds it."""
        plain = state_of(
            self.tensors(),
            grid,
            rank,
            zeros=zeros,
            scalars=self.scalars(),
            gathered={"dataloader": {"position": rank}, "rng": {"rank": rank}},
        )
        (group,) = self.optimizer.param_groups
        settings = {k: v for k, v in group.items() if k != "params"}
        return TrainingState(
            tensors=plain.tensors,
            scalars=plain.scalars,
            gathered=plain.gathered,
            torch_settings=TorchSettings(
                param_groups=dict.fromkeys(
                    dict(self.model.named_parameters()), settings
                ),
                initial_rates=[group["initial_lr"]],
                rates=[group["lr"]],
                data_ranks=2,
            ),
        )
