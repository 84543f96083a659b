"""What is compared between ranks, and what a difference leads to."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoint_ranks import ThreadRanks, results, run_ranks

from torchtitan_cpp import replica_check
from torchtitan_cpp.checkpoint import TensorEntry
from torchtitan_cpp.replica_check import ReplicaCheck, ReplicaError


class Group:
    """Gathers between threads."""

    def __init__(self, ranks: ThreadRanks) -> None:
        self._ranks = ranks

    def all_gather(self, out: torch.Tensor, own: torch.Tensor) -> Any:
        gathered = self._ranks.all_gather_bytes(own.numpy().tobytes())
        out.copy_(torch.frombuffer(bytearray(b"".join(gathered)), dtype=own.dtype))
        return SimpleNamespace(wait=lambda: None)


def entry(name: str, local: torch.Tensor, *, offset: int = 0, **kwargs: Any) -> Any:
    return TensorEntry(
        name=name,
        kind="optimizer" if name.startswith("optimizer.") else "model",
        local=local,
        global_shape=(64,),
        offset=(offset,),
        size=tuple(local.shape),
        is_writer=True,
        **kwargs,
    )


def run_checks(
    world_size: int,
    entries_of: Callable[[int, int], list[TensorEntry]],
    steps: int = 1,
) -> list[Any]:
    """What the ranks end with that check after each step what they hold then."""

    def body(ranks: ThreadRanks) -> list[str]:
        differences: list[str] = []
        step = 1
        world: Any = SimpleNamespace(
            parallel_dims=SimpleNamespace(world_size=world_size),
            device=torch.device("cpu"),
            groups={"world": Group(ranks)},
        )
        check = ReplicaCheck(
            1,
            lambda: entries_of(ranks.rank, step),
            ranks,
            world,
            lambda: differences.append("told"),
        )
        for step in range(1, steps + 1):
            if not differences:
                try:
                    check.check(step)
                except ReplicaError as error:
                    differences.append(str(error))
        return differences

    return results(run_ranks(world_size, body))


MOMENT = "optimizer.exp_avg.w"


@pytest.mark.parametrize("name", ["w", MOMENT, "optimizer.exp_avg_sq.w"])
@pytest.mark.parametrize("bit", [0, 15, 31])
def test_every_bit_of_weights_and_moments_counts(name: str, bit: int) -> None:
    def entries(rank: int, step: int) -> list[TensorEntry]:
        held = {n: torch.ones(8) for n in ("w", MOMENT, "optimizer.exp_avg_sq.w")}
        if rank == 2 and step == 2:
            held[name].view(torch.int32)[5] ^= -(2**31) if bit == 31 else 1 << bit
        return [entry(n, value) for n, value in held.items()]

    line = f"step 2: the copies of {name} differ: rank 2 from ranks 0, 1, which agree"
    for told, text in run_checks(3, entries, steps=2):
        assert told == "told" and text.startswith(line)


def test_a_moment_is_named_before_the_weight_that_follows_it() -> None:
    def entries(rank: int, step: int) -> list[TensorEntry]:
        value = torch.full((8,), float(rank))
        return [entry("a", value), entry(MOMENT, value), entry("b", torch.ones(8))]

    for _, text in run_checks(2, entries):
        assert f"copies of {MOMENT} differ (and 1 more tensors): rank 0 from" in text


def test_boxes_that_one_rank_holds_alone_may_hold_anything() -> None:
    def entries(rank: int, step: int) -> list[TensorEntry]:
        value = torch.full((8,), float(rank // 2))
        return [entry("w", value, offset=8 * (rank // 2)), entry(f"own{rank}", value)]

    assert run_checks(4, entries) == [[]] * 4


def test_state_that_appears_or_is_replaced_later_is_compared() -> None:
    def entries(rank: int, step: int) -> list[TensorEntry]:
        held = [entry("w", torch.ones(8))]
        if step > 1:
            moment = torch.zeros(8)  # another tensor at each step
            moment[3] = float(step == 4 and rank == 1)
            held.append(entry(MOMENT, moment))
        return held

    for _, text in run_checks(2, entries, steps=4):
        assert text.startswith(f"step 4: the copies of {MOMENT} differ")


def test_state_that_only_some_ranks_lose_is_no_difference_of_the_others() -> None:
    def entries(rank: int, step: int) -> list[TensorEntry]:
        value = torch.full((8,), float(step == 3 and rank == 2))
        held = [entry("w", value)]
        return held if rank == 1 and step > 1 else [*held, entry(MOMENT, value + 1)]

    for _, text in run_checks(3, entries, steps=3):
        assert re.match(f"step 3: the copies of {MOMENT} differ.*rank 0 from", text)


def test_buffers_that_differ_are_told_once_and_stop_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def entries(rank: int, step: int) -> list[TensorEntry]:
        mean = torch.full((8,), float(rank == 1 and step > 1))
        other = torch.full((8,), float(rank == 1 and step > 2))
        return [
            entry("mean", mean, is_buffer=True),
            entry("other", other, is_buffer=True),
            entry("w", torch.ones(8)),
        ]

    caplog.set_level("WARNING", logger="torchtitan_cpp")
    assert run_checks(3, entries, steps=4) == [[]] * 3
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    who = "rank 1 from ranks 0, 2, which agree"
    assert lines[0].startswith(f"Step 2: the copies of buffer mean differ: {who}")
    assert lines[1].startswith(f"Step 3: the copies of buffer other differ: {who}")


def test_an_optimizer_whose_state_cannot_be_compared_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> list[TensorEntry]:
        raise ValueError("the state of 'w' is no piece of it")

    weights = [entry("w", torch.ones(3))]
    monkeypatch.setattr(replica_check, "model_entries", lambda _: weights)
    monkeypatch.setattr(replica_check, "moment_entries", refuse)
    trainer: Any = SimpleNamespace(
        job_config=SimpleNamespace(debug=SimpleNamespace(replica_check_interval=1)),
        world=SimpleNamespace(rank=0),
    )
    monkeypatch.setattr(replica_check, "GroupRanks", lambda world: world)
    check = replica_check.build_replica_check(trainer)
    assert check._entries() == check._entries() == weights
    assert caplog.text.count("not compared: the state of 'w' is no piece") == 1
