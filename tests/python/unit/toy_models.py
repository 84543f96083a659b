"""Small modules of every awkward kind, and what plain autograd says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torchtitan_cpp._C.collectives import Group

from torchtitan_cpp import _C, parallel
from torchtitan_cpp.loss import LossFunction, cross_entropy_loss
from torchtitan_cpp.nn.python_model import PythonModel, load_whole

VOCABULARY, DIM, LENGTH, ROWS = 17, 6, 5, 12
Values = dict[str, torch.Tensor]


class Block(nn.Module):
    """Takes and returns more than one tensor, some by keyword and nested."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.up = nn.Linear(DIM, 7)
        self.down = nn.Linear(7, DIM, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, h: torch.Tensor, *, more: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        inner = torch.tanh(self.up(self.norm(h)) + more["gate"][..., :1])
        return h + self.dropout(self.down(inner)), {"inner": inner, "rows": h[0, 0, 0]}


class Toy(nn.Module):
    """Learned positions, a value that all blocks read, and skips over blocks."""

    def __init__(
        self,
        *,
        container: type = nn.ModuleList,
        dropout: float = 0.0,
        tied: bool = False,
        num_layers: int = 3,
        skipped: int | None = None,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, DIM)
        self.positions = nn.Parameter(torch.randn(LENGTH, DIM))
        self.gate = nn.Linear(DIM, 3)
        blocks = [Block(dropout) for _ in range(num_layers)]
        if container is nn.ModuleDict:
            self.layers = nn.ModuleDict({str(i): b for i, b in enumerate(blocks)})
        else:
            self.layers = container(blocks)
        self.output = nn.Linear(DIM, VOCABULARY, bias=False)
        self.register_buffer("scale", torch.full((DIM,), 1.5), persistent=False)
        self.skipped = skipped
        if tied:
            self.output.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.tokens(tokens) + self.positions
        gate = torch.sigmoid(self.gate(h))
        start, first, inners = h, None, []
        layers = self.layers.values() if hasattr(self.layers, "values") else self.layers
        for index, layer in enumerate(layers):
            if index == self.skipped:
                continue
            h, other = layer(h, more={"gate": gate})
            h = h * self.scale
            inners.append(other["inner"].mean((1, 2), keepdim=True))
            first = h if first is None else first
        assert first is not None
        return self.output(h * first + start) * (1 + sum(inners))


def make(seed: int = 3, **options: object) -> nn.Module:
    """In float64, with the numbers of the seed."""
    torch.manual_seed(seed)
    return Toy(**options).double()  # type: ignore[arg-type]


def tokens_and_labels() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[::3, 2] = -100
    return {"input": ids[:, :-1].contiguous(), "labels": labels}


@dataclass(kw_only=True)
class Layout:
    shards: int = 1
    replicas: int = 1
    microbatches: int = 1
    recompute: str = "none"
    reshard: str = "default"
    steps: int = 1
    offload: bool = False
    num_ranks: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_ranks = self.shards * self.replicas


@dataclass(kw_only=True)
class Outcome:
    loss: float
    gradients: Values
    weights: Values
    evaluated: list[float] = field(default_factory=list)
    """Loss sums of the ranks' rows without gradients, after the last step."""
    num_offloads: int = 0
    """Of a rank in a step."""
    host_peak: int = 0
    """Most bytes of all ranks together in host memory."""
    host_left: int = 0


MakeOptimizer = Callable[[nn.Module, _C.parallel.Applied], _C.optim.Optimizer]


def _no_optimizer(
    module: nn.Module, applied: _C.parallel.Applied
) -> _C.optim.Optimizer:
    return _C.optim.CalledOptimizer([], lambda: None)


def run(
    build: Callable[[], nn.Module],
    layout: Layout,
    *,
    loss_fn: LossFunction = cross_entropy_loss,
    make_optimizer: MakeOptimizer = _no_optimizer,
    max_norm: float = float("inf"),
) -> Outcome:
    """As the training step runs it, on one thread for each rank."""
    modules = [build() for _ in range(layout.num_ranks)]
    whole = dict(build().named_parameters())
    world = _C.collectives.LocalWorld(layout.num_ranks, timeout_seconds=60)
    outcome = Outcome(loss=0, gradients={}, weights={})
    host = _C.nn.copies_on_host() if layout.offload else None

    def axis(rank: int, name: str, ranks: list[int]) -> Group:
        return (
            Group(name)
            if len(ranks) == 1
            else world.group(rank, name=name, ranks=ranks)
        )

    def body(rank: int) -> None:
        ranks = range(layout.num_ranks)
        column, row = rank % layout.shards, rank // layout.shards
        python = PythonModel(modules[rank], loss_fn)
        core = python.build_core()
        applied = _C.parallel.apply(
            _C.parallel.whole(core),
            shards=axis(rank, "fsdp", [r for r in ranks if r // layout.shards == row]),
            replicas=axis(
                rank, "dp_replicate", [r for r in ranks if r % layout.shards == column]
            ),
            tensor=Group("tp"),
            master_dtype=torch.float64,
            compute_dtype=torch.float64,
            reduce_dtype=torch.float64,
            device=torch.device("cpu"),
            reshard_after_forward=layout.reshard,
            overlap_depth=1,
            recompute=_C.parallel.Recompute(mode=layout.recompute, every=2),
            num_microbatches=layout.microbatches,
            early_optimizer_step=False,
            host=host,
        )
        python.bind(
            applied.groups,
            applied.recompute,
            device=torch.device("cpu"),
            recomputed_modules=[] if layout.recompute == "per_operation" else None,
        )
        load_whole(applied.groups, whole)
        step = _C.train.Step(
            applied,
            make_optimizer(modules[rank], applied),
            loss_axis=axis(rank, "loss", list(ranks)),
            max_norm=max_norm,
        )
        rows = ROWS // (layout.num_ranks * layout.microbatches)
        for number in range(layout.steps):
            result = step.run(
                [
                    {
                        name: each.narrow(0, (m * layout.num_ranks + rank) * rows, rows)
                        for name, each in tokens_and_labels().items()
                    }
                    for m in range(layout.microbatches)
                ],
                learning_rate=0.1,
                step=number + 1,
            )
        collect(applied, outcome)
        rows = ROWS // layout.num_ranks
        evaluation = step.evaluate(
            {n: v.narrow(0, rank * rows, rows) for n, v in tokens_and_labels().items()}
        )
        outcome.evaluated.append(float(evaluation.loss_sum))
        outcome.loss = float(result.loss)
        outcome.num_offloads = sum(
            action.kind == "Offload" for action in applied.training_actions
        )

    parallel.run_local(world, body)
    if host is not None:
        outcome.host_peak, outcome.host_left = host.memory.peak, host.memory.live
    return outcome


def collect(applied: _C.parallel.Applied, outcome: Outcome) -> None:
    """Write this rank's rows into the whole tensors; replicas write the same."""
    for group in applied.groups:
        for shard in group.shards:
            rows = slice(shard.offset[0], shard.offset[0] + shard.value.shape[0])
            for into, mine in (
                (outcome.gradients, shard.gradient),
                (outcome.weights, shard.value),
            ):
                zeros = torch.zeros(shard.global_shape, dtype=torch.float64)
                into.setdefault(shard.name, zeros)[rows] = mine


def reference(
    module: nn.Module,
    *,
    loss_fn: LossFunction = cross_entropy_loss,
    optimizer: torch.optim.Optimizer | None = None,
    steps: int = 1,
) -> Outcome:
    """Plain autograd over the whole batch."""
    batch = tokens_and_labels()
    num_valid = (batch["labels"] != -100).sum()
    for _ in range(steps):
        module.zero_grad()
        loss = loss_fn(module(batch["input"]), batch["labels"]) / num_valid
        loss.backward()
        if optimizer is not None:
            optimizer.step()
    named = dict(module.named_parameters())
    return Outcome(
        loss=float(loss.detach()),
        gradients={
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for n, p in named.items()
        },
        weights={n: p.detach().clone() for n, p in named.items()},
    )


def assert_close(found: Values, expected: Values, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = float((found[name] - value).norm())
        norm = float(value.norm())
        assert error <= (tolerance * norm if norm > 0 else 1e-12), name


def squared_error(prediction: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A loss of one's own: to the one-hot label, over valid tokens."""
    valid = labels != -100
    target = F.one_hot(labels.clamp(min=0), VOCABULARY).to(prediction.dtype)
    return ((prediction - target).square().sum(-1) * valid).sum()
