"""A small transformer in Python, plans for it, and how to run it on threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Outcome, Values

from torchtitan_cpp import _C, get_train_spec
from torchtitan_cpp.build import Model, build_model, build_step
from torchtitan_cpp.config import JobConfig, read_config
from torchtitan_cpp.local_ranks import make_fake_groups, make_local_groups, run_local
from torchtitan_cpp.nn.initial_values import make_whole
from torchtitan_cpp.parallel import Distributed
from torchtitan_cpp.tensor_parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleInputOutput,
    PrepareModuleOutput,
    Replicate,
    RowwiseParallel,
    SequenceParallel,
    Shard,
    tensor_parallel_plan,
)
from torchtitan_cpp.train_spec import TrainSpec
from torchtitan_cpp.world import ParallelDims, World

LENGTH, ROWS, SEED = 8, 4, 5
Plan = Mapping[str, ParallelStyle]


@dataclass
class Args:
    """Sizes; 21 classes are not divided evenly by two ranks."""

    dim: int = 16
    heads: int = 4
    hidden: int = 12
    vocab_size: int = 21
    num_layers: int = 2
    dropout: float = 0.0
    tied: bool = False
    padding: int | None = None

    def update_from_config(self, job_config: Any) -> None:
        """Nothing depends on the job."""

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        count = sum(parameter.numel() for parameter in model.parameters())
        return count, 6 * count


class Attention(nn.Module):
    """Half as many key heads as query heads, which are normed one by one."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.head_dim = args.dim // args.heads
        self.wq = nn.Linear(args.dim, args.dim)
        self.wk = nn.Linear(args.dim, args.dim // 2, bias=False)
        self.wv = nn.Linear(args.dim, args.dim // 2, bias=False)
        self.q_norm = nn.LayerNorm(self.head_dim)
        self.wo = nn.Linear(args.dim, args.dim)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        x = x * scale.mean(-1, keepdim=True)
        shape = (*x.shape[:2], -1, self.head_dim)
        q = self.q_norm(self.wq(x).view(shape)).transpose(1, 2)
        k, v = (
            w(x).view(shape).repeat_interleave(2, 2).transpose(1, 2)
            for w in (self.wk, self.wv)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, args: Args) -> None:
        super().__init__()
        self.w1 = nn.Linear(args.dim, args.hidden)
        self.w3 = nn.Linear(args.dim, args.hidden, bias=False)
        self.w2 = nn.Linear(args.hidden, args.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, args: Args) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(args.dim)
        self.attention = Attention(args)
        self.ffn_norm = nn.RMSNorm(args.dim)
        self.feed_forward = FeedForward(args)
        self.dropout = nn.Dropout(args.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.attention_norm(x)
        h = x + self.dropout(self.attention(normed, scale=normed.tanh()))
        return h + self.feed_forward(self.ffn_norm(h))


class Styled(nn.Module):
    """Its children may be absent, as in a pipeline."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.tok_embeddings: nn.Module | None = nn.Embedding(
            args.vocab_size, args.dim, padding_idx=args.padding
        )
        self.layers = nn.ModuleDict(
            {str(i): Block(args) for i in range(args.num_layers)}
        )
        self.norm: nn.Module | None = nn.LayerNorm(args.dim)
        self.output: nn.Module | None = nn.Linear(
            args.dim, args.vocab_size, bias=not args.tied
        )
        if args.tied:
            self.output.weight = self.tok_embeddings.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tok_embeddings(x) if self.tok_embeddings is not None else x
        for layer in self.layers.values():
            h = layer(h)
        h = self.norm(h) if self.norm is not None else h
        return self.output(h) if self.output is not None else h


WHOLE: Plan = {
    "tok_embeddings": RowwiseParallel(),
    "layers.*.attention.w[qkv]": ColwiseParallel(),
    "layers.*.attention.q_norm": SequenceParallel(sequence_dim=2),
    "layers.*.attention.wo": RowwiseParallel(),
    "layers.*.feed_forward.w[13]": ColwiseParallel(),
    "layers.*.feed_forward.w2": RowwiseParallel(),
    "output": ColwiseParallel(output_layouts=Replicate()),
}
"""Activations between modules are whole."""

SEQUENCE: Plan = {
    **WHOLE,
    "tok_embeddings": RowwiseParallel(output_layouts=Shard(1)),
    "layers.*.attention_norm": SequenceParallel(),
    "layers.*.attention": PrepareModuleInput(
        input_layouts=Shard(1),
        desired_input_layouts=Replicate(),
        input_kwarg_layouts={"scale": Shard(1)},
        desired_input_kwarg_layouts={"scale": Replicate()},
    ),
    "layers.*.attention.wo": RowwiseParallel(output_layouts=Shard(1)),
    "layers.*.dropout": SequenceParallel(),
    "layers.*.ffn_norm": SequenceParallel(),
    "layers.*.feed_forward": PrepareModuleInput(
        input_layouts=Shard(1), desired_input_layouts=Replicate()
    ),
    "layers.*.feed_forward.w2": RowwiseParallel(output_layouts=Shard(1)),
    "norm": SequenceParallel(),
    "output": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
}
"""torchtitan's plan for Llama 3: tokens are divided between modules."""

MIXED: Plan = {
    "tok_embeddings": ColwiseParallel(output_layouts=Shard(1)),
    "layers.*.attention_norm": SequenceParallel(),
    "layers.*.attention": PrepareModuleInputOutput(
        input_layouts=(Shard(1),),
        desired_input_layouts=(Replicate(),),
        input_kwarg_layouts={"scale": Shard(1)},
        desired_input_kwarg_layouts={"scale": Replicate()},
        output_layouts=Replicate(),
        desired_output_layouts=Shard(1),
    ),
    "layers.*.attention.w[qkv]": ColwiseParallel(output_layouts=Replicate()),
    "layers.*.attention.wo": RowwiseParallel(input_layouts=Replicate()),
    "layers.*.dropout": SequenceParallel(),
    "layers.*.ffn_norm": SequenceParallel(),
    "layers.*.feed_forward.w[13]": ColwiseParallel(input_layouts=Shard(1)),
    "layers.*.feed_forward.w2": RowwiseParallel(output_layouts=Shard(1)),
    "norm": PrepareModuleInput(
        input_layouts=Shard(1), desired_input_layouts=Replicate()
    ),
    "output": RowwiseParallel(input_layouts=Replicate()),
}
"""Every other way from one layout to another."""

SLICED: Plan = {
    **SEQUENCE,
    "tok_embeddings": PrepareModuleOutput(
        output_layouts=Replicate(), desired_output_layouts=Shard(1)
    ),
}
"""The embedding is whole; each rank takes its tokens."""


@dataclass(kw_only=True)
class Layout:
    plan: Plan
    tp: int = 2
    shards: int = 1
    replicas: int = 1
    pp: int = 1
    microbatches: int = 1
    flags: tuple[str, ...] = ()
    args: Args = field(default_factory=Args)
    loss_fn: Callable[..., torch.Tensor] | None = None

    @property
    def num_ranks(self) -> int:
        return self.tp * self.shards * self.replicas * self.pp

    @property
    def config(self) -> JobConfig:
        rows = ROWS // (self.shards * self.replicas)
        per_step = rows // self.microbatches if self.pp == 1 else rows
        return read_config(
            [
                "--training.dtype=float64",
                "--training.mixed_precision_param=float32",
                f"--training.seq_len={LENGTH}",
                f"--training.local_batch_size={per_step}",
                f"--training.global_batch_size={ROWS}",
                "--training.max_norm=inf",
                f"--parallelism.tensor_parallel_degree={self.tp}",
                f"--parallelism.data_parallel_shard_degree={self.shards}",
                f"--parallelism.data_parallel_replicate_degree={self.replicas}",
                f"--parallelism.pipeline_parallel_degree={self.pp}",
                "--model.flavor=small",
                "--activation_checkpoint.mode=none",
                *self.flags,
            ]
        ).config

    @property
    def spec(self) -> TrainSpec:
        spec = replace(
            get_train_spec("llama3"),
            model_cls=Styled,
            model_args=cast(Any, {"small": self.args}),
            parallelize_fn=tensor_parallel_plan(self.plan),
            state_dict_adapter=None,
        )
        loss_fn = self.loss_fn
        if loss_fn is not None:
            spec = replace(spec, build_loss_fn=lambda job_config: loss_fn)
        return spec


def tokens_and_labels(vocabulary: int) -> Values:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocabulary, (ROWS, LENGTH + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[::3, 2] = -100
    return {"input": ids[:, :-1].contiguous(), "labels": labels}


def whole_model(args: Args) -> nn.Module:
    """In float64, with the initial values of ``SEED``."""
    return make_whole(lambda: Styled(args), seed=SEED, dtype=torch.float32).double()


def make_world(
    layout: Layout,
    local: _C.collectives.LocalWorld | None,
    rank: int,
    recorder: _C.collectives.Recorder | None = None,
) -> World:
    """Of the rank that is a thread; of one played alone without ``local``."""
    mesh = _C.mesh.Mesh(
        _C.mesh.ParallelDims(
            dp_replicate=layout.replicas,
            dp_shard=layout.shards,
            cp=1,
            tp=layout.tp,
            pp=layout.pp,
            ep=1,
            etp=1,
            world_size=layout.num_ranks,
        )
    )
    names = ("world", "pp", "dp_replicate", "fsdp", "batch", "loss", "cp", "tp")
    ranks = range(layout.num_ranks)
    axes = {axis: sorted({tuple(mesh.ranks(axis, r)) for r in ranks}) for axis in names}
    recorder = recorder or _C.collectives.Recorder()
    if local is None:
        groups = make_fake_groups(
            axes, rank=rank, world_size=layout.num_ranks, recorder=recorder
        )
    else:
        groups = make_local_groups(local, axes, rank=rank, recorder=recorder)
    return World(
        rank=rank,
        device=torch.device("meta" if local is None else "cpu"),
        parallel_dims=ParallelDims(
            **{n: getattr(mesh.dims, n) for n in ParallelDims.__annotations__}
        ),
        groups=groups,
        recorder=recorder,
        distributed=None if local is None else cast(Distributed, object()),
    )


def dry_run(layout: Layout, recorder: _C.collectives.Recorder) -> None:
    """One step of rank 0 that computes nothing."""
    world = make_world(layout, None, 0, recorder)
    config, spec = layout.config, layout.spec
    model = build_model(spec, config, world, accumulation=layout.microbatches)
    optimizers = spec.build_optimizers_fn(
        [model.module], config.optimizer, world.parallel_dims, None
    )
    step = build_step(model, optimizers, config, world)
    batches = [
        {name: each.to("meta") for name, each in batch.items()}
        for batch in _microbatches(layout, model, world)
    ]
    step.run(batches, learning_rate=0.0, step=1)


def run(
    layout: Layout, steps: int = 1, recorder: _C.collectives.Recorder | None = None
) -> Outcome:
    """Steps of the whole batch, one thread a rank.

    Args:
        recorder: of rank 0 in the last step.
    """
    local = _C.collectives.LocalWorld(layout.num_ranks, timeout_seconds=60)
    outcome = Outcome(loss=0, gradients={}, weights={})
    config, spec = layout.config, layout.spec
    one_by_one = threading.Lock()  # torch's generator and default dtype are of all

    def body(rank: int) -> None:
        world = make_world(layout, local, rank, None if rank else recorder)
        with one_by_one:
            model = build_model(spec, config, world, accumulation=layout.microbatches)
            model.initialize(SEED)
        optimizers = spec.build_optimizers_fn(
            [model.module], config.optimizer, world.parallel_dims, None
        )
        step = build_step(model, optimizers, config, world)
        batches = _microbatches(layout, model, world)
        for number in range(steps):
            world.recorder.reset()
            result = step.run(batches, learning_rate=1e-2, step=number + 1)
        collect(model, outcome)
        if layout.pp == 1 and recorder is None:
            sums = [float(step.evaluate(batch).loss_sum) for batch in batches]
            outcome.evaluated.append(sum(sums))
        outcome.loss = float(result.loss)

    run_local(local, body)
    return outcome


def _microbatches(layout: Layout, model: Model, world: World) -> list[Values]:
    count = layout.microbatches
    if model.pipeline is not None:
        count = model.pipeline.num_microbatches
    ranks = world.parallel_dims.batch
    rows = ROWS // (ranks * count)
    first = [(m * ranks + world.data_rank) * rows for m in range(count)]
    batch = tokens_and_labels(layout.args.vocab_size)
    return [{k: v.narrow(0, row, rows) for k, v in batch.items()} for row in first]


def collect(model: Model, outcome: Outcome) -> None:
    """Write this rank's pieces into the whole tensors."""
    for group in model.applied.groups:
        for shard in group.shards:
            box = tuple(
                slice(begin, begin + size)
                for begin, size in zip(shard.offset, shard.value.shape, strict=True)
            )
            for into, mine in (
                (outcome.gradients, shard.gradient),
                (outcome.weights, shard.value),
            ):
                empty = torch.full(shard.global_shape, torch.nan, dtype=torch.float64)
                into.setdefault(shard.name, empty)[box] = mine.detach()
