"""A loss of the user's behind a C++ model."""

from __future__ import annotations

import pytest
import torch
from torchtitan_cpp._C.collectives import Group
from toy_models import assert_close, squared_error

from torchtitan_cpp import _C, parallel
from torchtitan_cpp.loss import LossFunction
from torchtitan_cpp.models.llama3 import Transformer, TransformerModelArgs
from torchtitan_cpp.nn.python_model import load_whole

ROWS, LENGTH = 4, 6


def make() -> Transformer:
    args = TransformerModelArgs(
        dim=8, n_layers=2, n_heads=2, vocab_size=17, multiple_of=4, max_seq_len=LENGTH
    )
    torch.manual_seed(2)
    return Transformer(args).double()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.arange(ROWS * (LENGTH + 1)).view(ROWS, -1) * 5 % 17
    labels = ids[:, 1:].clone()
    labels[0, :4] = -100
    return {"input": ids[:, :-1].contiguous(), "labels": labels}


def run(num_ranks: int, loss_fn: LossFunction) -> dict[str, torch.Tensor]:
    """Whole gradients of one step."""
    whole = dict(make().named_parameters())
    modules = [make() for _ in range(num_ranks)]
    world = _C.collectives.LocalWorld(num_ranks, timeout_seconds=60)
    gradients = {name: torch.zeros_like(p) for name, p in whole.items()}

    def body(rank: int) -> None:
        everyone = world.group(rank) if num_ranks > 1 else Group("fsdp")
        device = torch.device("cpu")
        core = modules[rank].build_core(
            head="logits", device=device, dtype=torch.float64
        )
        core = core.with_loss(loss_fn)
        applied = _C.parallel.apply(
            _C.parallel.whole(core),
            shards=everyone,
            replicas=Group("dp_replicate"),
            tensor=Group("tp"),
            master_dtype=torch.float64,
            compute_dtype=torch.float64,
            reduce_dtype=torch.float64,
            device=device,
            reshard_after_forward="default",
            overlap_depth=1,
            recompute=_C.parallel.Recompute(mode="full"),
            num_microbatches=1,
            early_optimizer_step=False,
        )
        load_whole(applied.groups, whole)
        step = _C.train.Step(
            applied,
            _C.optim.CalledOptimizer([], lambda: None),
            loss_axis=everyone,
            max_norm=1.0,
        )
        rows = ROWS // num_ranks
        mine = {n: v.narrow(0, rank * rows, rows) for n, v in batch().items()}
        step.run([mine], learning_rate=0.1, step=1)
        for group in applied.groups:
            for shard in group.shards:
                first = shard.offset[0]
                end = first + shard.value.shape[0]
                gradients[shard.name].data[first:end] = shard.gradient

    parallel.run_local(world, body)
    return {name: gradient.detach() for name, gradient in gradients.items()}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_its_gradients_equal_plain_autograd(num_ranks: int) -> None:
    model, data = make(), batch()
    num_valid = (data["labels"] != -100).sum()
    (squared_error(model(data["input"]), data["labels"]) / num_valid).backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_close(run(num_ranks, squared_error), expected, 1e-10)


def test_a_loss_that_is_no_single_number_is_refused() -> None:
    with pytest.raises(ValueError, match="the loss must be one number"):
        run(1, lambda prediction, labels: prediction.sum(-1))
