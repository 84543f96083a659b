"""Models with styles equal plain autograd, in loss and every gradient."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from styled_models import (
    MIXED,
    SEQUENCE,
    SLICED,
    WHOLE,
    Args,
    Layout,
    dry_run,
    run,
    tokens_and_labels,
    whole_model,
)
from torch import nn
from toy_models import Outcome, assert_close

from torchtitan_cpp import _C, parallel
from torchtitan_cpp.loss import cross_entropy_loss
from torchtitan_cpp.tensor_parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    Replicate,
    RowwiseParallel,
    SequenceParallel,
    Shard,
    exchanges,
    tensor_parallel_plan,
)
from torchtitan_cpp.tensor_parallel.agreement import check_loss
from torchtitan_cpp.tensor_parallel.collectives import Axis
from torchtitan_cpp.tensor_parallel.division import Division

PLANS = {"whole": WHOLE, "sequence": SEQUENCE, "mixed": MIXED, "sliced": SLICED}
BY_OPERATION = (
    "--activation_checkpoint.mode=selective",
    "--activation_checkpoint.selective_ac_option=op",
)
ZERO_BUBBLE = "--parallelism.pipeline_parallel_schedule=ZBVZeroBubble"

LAYOUTS: dict[str, Layout] = {
    "fsdp_2_tp_2_sequence": Layout(plan=SEQUENCE, shards=2),
    "fsdp_2_tp_2_whole_accumulated": Layout(plan=WHOLE, shards=2, microbatches=2),
    "ddp_2_tp_2_mixed": Layout(plan=MIXED, replicas=2),
    "pp_2_tp_2_sequence": Layout(plan=SEQUENCE, pp=2),
    "pp_2_tp_2_whole_divided_backward": Layout(
        plan=WHOLE, pp=2, args=Args(num_layers=4), flags=(ZERO_BUBBLE,)
    ),
    "pp_2_tp_2_sequence_divided_backward": Layout(
        plan=SEQUENCE, pp=2, args=Args(num_layers=4), flags=(ZERO_BUBBLE,)
    ),
    "recomputed": Layout(plan=SEQUENCE, flags=("--activation_checkpoint.mode=full",)),
    "recomputed_by_operation": Layout(plan=SEQUENCE, shards=2, flags=BY_OPERATION),
    "logits_gathered": Layout(
        plan=SEQUENCE, flags=("--parallelism.disable_loss_parallel",)
    ),
    "tp_4": Layout(plan=WHOLE, tp=4, args=Args(heads=8)),
}


def reference(layout: Layout) -> Outcome:
    """Plain autograd over the whole batch."""
    module = whole_model(layout.args)
    batch = tokens_and_labels(layout.args.vocab_size)
    loss_fn = layout.loss_fn or cross_entropy_loss
    loss = loss_fn(module(batch["input"]), batch["labels"])
    loss = loss / (batch["labels"] != -100).sum()
    loss.backward()
    named = dict(module.named_parameters())
    gradients = {n: p.grad for n, p in named.items() if p.grad is not None}
    assert gradients.keys() == named.keys()
    return Outcome(loss=float(loss.detach()), gradients=gradients, weights={})


def errors(layout: Layout) -> tuple[float, float]:
    """Of the loss, and the largest of any gradient, relative."""
    expected, found = reference(layout), run(layout)
    assert found.gradients.keys() == expected.gradients.keys()
    worst = max(
        float((found.gradients[name] - value).norm() / value.norm())
        for name, value in expected.gradients.items()
    )
    return abs(found.loss - expected.loss) / expected.loss, worst


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_has_the_gradients_of_plain_autograd(plan: str) -> None:
    loss, gradients = errors(Layout(plan=PLANS[plan]))
    assert loss <= 1e-10
    assert gradients <= 1e-10


@pytest.mark.parametrize("name", LAYOUTS)
def test_composed_with_other_parallelisms(name: str) -> None:
    loss, gradients = errors(LAYOUTS[name])
    assert loss <= 1e-10
    assert gradients <= 1e-10


def distance(prediction: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A loss of one's own, of whole predictions."""
    valid = (labels != -100).unsqueeze(-1)
    return (prediction.tanh() * valid).square().sum()


@pytest.mark.parametrize(
    "layout",
    [
        Layout(plan=SEQUENCE, args=Args(tied=True), shards=2),
        Layout(plan=WHOLE, args=Args(tied=True)),
        Layout(plan=SEQUENCE, args=Args(padding=12)),
        Layout(plan=WHOLE, args=Args(padding=-21)),
        Layout(plan=SEQUENCE, loss_fn=distance),
    ],
    ids=["tied_sharded", "tied", "padding", "padding_first", "own_loss"],
)
def test_other_models_and_losses(layout: Layout) -> None:
    loss, gradients = errors(layout)
    assert loss <= 1e-10
    assert gradients <= 1e-10


@pytest.mark.parametrize("plan", [SEQUENCE, WHOLE], ids=["sequence", "whole"])
def test_weights_and_evaluations_after_steps_are_those_of_one_rank(plan: Any) -> None:
    found = run(Layout(plan=plan, shards=2), steps=3)
    expected = run(Layout(plan=plan, tp=1), steps=3)
    assert_close(found.weights, expected.weights, 1e-9)
    both = found.evaluated  # of two data ranks, by two tensor ranks each
    assert sum(both) / 2 == pytest.approx(expected.evaluated[0], rel=1e-9)


def test_dropout_of_a_part_of_the_tokens_draws_the_numbers_of_one_rank() -> None:
    x, parts = torch.randn(2, 6, 3), []
    for rank in (0, 1):
        model = nn.Sequential(nn.Dropout(0.5))
        plan = tensor_parallel_plan({"0": SequenceParallel()})
        Division(model, plan, _C.collectives.fake_group("tp", rank=rank, size=2))
        torch.manual_seed(3)
        parts.append(model(x[:, 3 * rank : 3 * rank + 3]))
    torch.manual_seed(3)
    assert torch.equal(torch.cat(parts, 1), nn.Dropout(0.5)(x))
    model.eval()
    assert torch.equal(model(x), x)


_deaf = threading.local()


class Deaf:
    """In place of what ranks exchange: their own numbers."""

    @staticmethod
    def all_gather(axis: Axis, x: torch.Tensor, dim: int, total: int) -> torch.Tensor:
        return torch.cat([x] * (axis.size + 1), dim).narrow(dim, 0, total)

    @staticmethod
    def reduce_scatter(axis: Axis, x: torch.Tensor, dim: int) -> torch.Tensor:
        return x.chunk(axis.size, dim)[axis.rank].contiguous()

    @staticmethod
    def all_reduce(axis: Axis, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


@contextmanager
def deaf() -> Iterator[None]:
    _deaf.now = True
    try:
        yield
    finally:
        _deaf.now = False


def delete_collective(patch: pytest.MonkeyPatch, function: str, method: str) -> None:
    """Of ``exchanges.<function>.<method>``."""
    for verb in ("all_gather", "reduce_scatter", "all_reduce"):
        real, instead = getattr(Axis, verb), getattr(Deaf, verb)

        def chosen(
            self: Axis, *args: Any, real: Any = real, instead: Any = instead
        ) -> Any:
            call = instead if getattr(_deaf, "now", False) else real
            return call(self, *args)

        patch.setattr(Axis, verb, chosen)
    whole = getattr(getattr(exchanges, function), method)

    def mutated(ctx: Any, *args: Any) -> Any:
        with deaf():
            return whole(ctx, *args)

    patch.setattr(getattr(exchanges, function), method, staticmethod(mutated))


COLLECTIVES = [
    ("_Gather", "forward", "sequence"),
    ("_Gather", "forward", "whole"),
    ("_GatherForProducts", "forward", "mixed"),
    ("_GatherForProducts", "backward", "mixed"),
    ("_KnownGather", "backward", "sequence"),
    ("_OwnPart", "backward", "mixed"),
    ("_OwnPart", "backward", "sliced"),
    ("_SumAll", "forward", "whole"),
    ("_SumScatter", "forward", "sequence"),
    ("_SumScatter", "backward", "sequence"),
    ("_SumGradients", "backward", "whole"),
    ("_SumGradients", "backward", "sequence"),
]


@pytest.mark.parametrize(("function", "method", "plan"), COLLECTIVES)
def test_a_collective_that_is_deleted_is_noticed(
    function: str, method: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_collective(monkeypatch, function, method)
    try:
        worst = max(errors(Layout(plan=PLANS[plan])))
    except ValueError as error:  # ranks that do not agree find it themselves
        assert "on each rank" in str(error) or "different losses" in str(error)
        return
    assert worst > 1e-4


def traffic(layout: Layout) -> dict[str, tuple[int, int]]:
    """Calls and bytes on the tensor axis of rank 0 in the second step, by verb."""
    recorder = _C.collectives.Recorder()
    run(layout, steps=2, recorder=recorder)
    return on_tensor_axis(recorder)


def on_tensor_axis(recorder: _C.collectives.Recorder) -> dict[str, tuple[int, int]]:
    return {
        verb: (total.calls, total.bytes)
        for (group, verb), total in recorder.totals().items()
        if group == "tp"
    }


@pytest.mark.parametrize("plan", PLANS)
def test_a_dry_run_counts_what_a_run_exchanges(plan: str) -> None:
    layout = Layout(plan=PLANS[plan], shards=2)
    recorder = _C.collectives.Recorder()
    dry_run(layout, recorder)
    found = on_tensor_axis(recorder)
    assert found == traffic(layout)
    assert found


def test_products_of_one_input_share_its_exchanges() -> None:
    one, two = (traffic(Layout(plan=SEQUENCE, args=Args(num_layers=n))) for n in (1, 2))
    of_layer = {verb: two[verb][0] - one[verb][0] for verb in two}
    # Forward gathers x and the scale for attention and x for feed_forward, backward the
    # gradients of the two sums; inputs of wq, wk, wv and of w1, w3 are gathered once.
    assert of_layer["all_gather"] == 3 + 2
    # Forward sums wo and w2, backward the inputs of w1 and w3 at once; those of wq, wk
    # and wv were multiplied by the scale, so they are summed whole.
    assert of_layer["reduce_scatter"] == 2 + 1
    assert of_layer["all_reduce"] == 1 + 1  # the second one sums all whole parameters


def test_recomputation_by_operation_keeps_sums_over_ranks() -> None:
    full = ("--activation_checkpoint.mode=full",)
    plain, kept, again = (
        traffic(Layout(plan=SEQUENCE, flags=flags))
        for flags in ((), BY_OPERATION, full)
    )
    assert kept["reduce_scatter"] == plain["reduce_scatter"]
    assert again["reduce_scatter"][0] > plain["reduce_scatter"][0]
    assert kept["all_gather"][0] > plain["all_gather"][0]


def without(plan: Any, *names: str) -> Any:
    assert set(names) <= set(plan)
    return {name: style for name, style in plan.items() if name not in names}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            without(SEQUENCE, "layers.*.attention_norm"),
            r"layers\.1\.attention_norm\.\w+ has another gradient on each rank",
        ),
        (without(SEQUENCE, "norm"), r"norm\.\w+ has another gradient on each rank"),
        (
            without(WHOLE, "layers.*.attention.q_norm"),
            r"layers\.1\.attention\.q_norm\.\w+ has another gradient",
        ),
        (
            {**WHOLE, "output": ColwiseParallel()},
            "prediction is this rank's part of output; .*use_local_output=False",
        ),
        (
            {
                **SEQUENCE,
                "layers.*.feed_forward": PrepareModuleInput(
                    input_layouts=(Shard(1), None),
                    desired_input_layouts=(Replicate(), None),
                ),
            },
            r"layers\.0\.feed_forward has 1 inputs, its style 2 layouts",
        ),
    ],
)
def test_a_plan_that_is_wrong_is_noticed(plan: Any, message: str) -> None:
    layout = Layout(plan=plan, args=Args(vocab_size=22))
    with pytest.raises(ValueError, match=message):
        run(layout)


def test_ranks_with_different_losses_notice_it() -> None:
    local = _C.collectives.LocalWorld(2, timeout_seconds=60)

    def body(rank: int) -> None:
        axis = Axis(local.group(rank, name="tp"))
        check_loss(torch.tensor(2.0), axis)
        with pytest.raises(ValueError, match=rf"different losses \({rank} here"):
            check_loss(torch.tensor(float(rank)), axis)

    parallel.run_local(local, body)


def test_a_prediction_that_is_not_divided_as_told() -> None:
    model = nn.Sequential(nn.Linear(3, 5))
    plan = tensor_parallel_plan({"0": ColwiseParallel(use_local_output=False)})
    division = Division(model, plan, _C.collectives.fake_group("tp", rank=1, size=2))
    loss = division.loss(distance, loss_parallel=False)
    with pytest.raises(ValueError, match=r"this rank's 2 of 5 classes .*\[1, 2, 5\]"):
        loss(torch.ones(1, 2, 5), torch.ones(1, 2, dtype=torch.int64))


def test_what_cannot_be_divided_says_so() -> None:
    axis = Axis(_C.collectives.fake_group("tp", rank=0, size=2))
    message = r"dim 1 of a tensor of shape \[2, 3\] cannot be divided among 2 ranks"
    for want in (Shard(1), Shard(-1)):
        with pytest.raises(ValueError, match=message.replace("1", str(want.dim), 1)):
            exchanges.relayout(torch.ones(2, 3), Replicate(), want, axis)
    with pytest.raises(ValueError, match=message):
        exchanges.sum_parts(torch.ones(2, 3), Shard(1), axis)


def test_a_copy_of_a_styled_module_calls_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    plan = tensor_parallel_plan({"0": RowwiseParallel(input_layouts=Replicate())})
    Division(model, plan, _C.collectives.fake_group("tp", rank=0, size=2))
    model[0].weight = nn.Parameter(torch.ones(2, 2))
    copied = copy.deepcopy(model)
    copied[0].weight = nn.Parameter(torch.zeros(2, 2))
    assert copied(torch.ones(1, 4)).abs().sum() == 0
    assert model(torch.ones(1, 4)).abs().sum() > 0
