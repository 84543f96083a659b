"""What runs in the processes of test_parallel_processes.py: one rank of a scenario."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import nullcontext

import torch
from torchtitan_cpp._C.collectives import ReduceOp
from training_ranks import become_rank

from torchtitan_cpp import parallel
from torchtitan_cpp._C import core

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def values(rank: int, numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Different on every rank; sums are exact in bfloat16, so any order gives them."""
    return ((torch.arange(numel) * 7 + rank * 3) % 16 - 8).to(dtype)


def check_group(group: parallel.Group, members: list[int]) -> None:
    """Compare every verb with what plain torch makes of all members' inputs."""
    size, me = len(members), group.rank
    assert group.size == size
    for dtype in DTYPES:
        inputs = [values(rank, 6 * size, dtype) for rank in members]
        total = sum(tensor.double() for tensor in inputs)
        for op, expected in (
            (ReduceOp.SUM, total),
            (ReduceOp.MAX, torch.stack(inputs).amax(0)),
            (ReduceOp.MIN, torch.stack(inputs).amin(0)),
        ):
            tensor = inputs[me].clone()
            group.all_reduce(tensor, op=op).wait()
            assert torch.equal(tensor, expected.to(dtype)), (dtype, op)
        out = torch.zeros(3, 2, dtype=dtype)
        group.reduce_scatter(out, inputs[me]).wait()
        assert torch.equal(out.view(-1), total.view(size, 6)[me].to(dtype)), dtype
        gathered = torch.zeros(size * size * 6, dtype=dtype)
        group.all_gather(gathered, inputs[me]).wait()
        assert torch.equal(gathered, torch.cat(inputs)), dtype
        in_place = torch.zeros(size, 6 * size, dtype=dtype)
        in_place[me] = inputs[me]
        group.all_gather(in_place, in_place[me]).wait()
        assert torch.equal(in_place, torch.stack(inputs)), dtype
        for root in range(size):
            tensor = inputs[me].clone()
            group.broadcast(tensor, root=root).wait()
            assert torch.equal(tensor, inputs[root]), dtype
        check_pairs(group, inputs)
        check_uneven_exchange(group, dtype)
    group.barrier().wait()


def check_release(group: parallel.Group) -> None:
    """A handle that has been waited for keeps no tensor alive.

    The thread that completed the work may still hold it for a moment.
    """
    mine, own = torch.ones(2 * group.size), torch.zeros(2)
    gathered = torch.zeros(group.size * mine.numel())
    tensors = (mine, own, gathered)
    before = [holders(each) for each in tensors]
    handles = [group.all_gather(gathered, mine), group.reduce_scatter(own, mine)]
    for handle in handles:
        handle.wait()
    deadline = time.monotonic() + 30
    while [holders(each) for each in tensors] != before:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def holders(tensor: torch.Tensor) -> tuple[int, int]:
    """References to the tensor and to its memory."""
    storage = tensor.untyped_storage()._cdata
    return tensor._use_count(), torch._C._storage_Use_Count(storage)


def check_pairs(group: parallel.Group, inputs: list[torch.Tensor]) -> None:
    """A ring of sends and receives, two tags, received in the other order."""
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    one, two = torch.zeros_like(inputs[0]), torch.zeros_like(inputs[0])
    handles = [
        group.recv(two, peer=before, tag=2),
        group.recv(one, peer=before, tag=1),
        group.send(inputs[group.rank], peer=after, tag=1),
        group.send(inputs[group.rank] + 1, peer=after, tag=2),
    ]
    while not handles[0].completed():  # one is asked for, the others are waited for
        time.sleep(0.001)
    for handle in handles:
        handle.wait()
        assert handle.completed()
    assert torch.equal(one, inputs[before])
    assert torch.equal(two, inputs[before] + 1)


def check_uneven_exchange(group: parallel.Group, dtype: torch.dtype) -> None:
    """Rank s sends (s + d) % 3 rows of value 10 s + d to rank d."""
    me, size = group.rank, group.size
    sent = [torch.full(((me + to) % 3, 2), 10 * me + to) for to in range(size)]
    expected = [torch.full(((s + me) % 3, 2), 10 * s + me) for s in range(size)]
    out = torch.zeros(torch.cat(expected).shape, dtype=dtype)
    group.all_to_all(
        out,
        torch.cat(sent).to(dtype),
        out_splits=[len(rows) for rows in expected],
        in_splits=[len(rows) for rows in sent],
    ).wait()
    assert torch.equal(out, torch.cat(expected).to(dtype))


def verbs(distributed: parallel.Distributed) -> None:
    """Every verb on the world and on the axes of a 2 x 2 mesh."""
    rank = distributed.rank
    recorder = parallel.Recorder()
    axes = {
        "world": [[0, 1, 2, 3]],
        "dp": [[0, 2], [1, 3]],
        "tp": [[0, 1], [2, 3]],
        "pp": [[0], [1], [2], [3]],
        "odd": [[3, 1, 0], [2]],
    }
    groups = distributed.make_groups(axes, recorder=recorder)
    for axis, all_ranks in axes.items():
        members = parallel.own_ranks(all_ranks, axis, rank, 4)
        if len(members) == 1:
            assert groups[axis].size == 1
        elif axis != "odd":  # torch orders the ranks of a group
            check_group(groups[axis], members)
    assert recorder.total("dp", "barrier").calls == 1
    assert recorder.total("dp", "all_gather").bytes == 2 * (8 + 4 + 2) * 24
    assert recorder.total("pp", "barrier").calls == 0
    world = groups["world"]
    check_release(world)
    for dtype in (torch.float8_e4m3fn, torch.bool, torch.int16, torch.complex64):
        part = torch.full((3,), rank % 2).to(dtype)
        whole = torch.zeros(12).to(dtype)
        world.all_gather(whole, part).wait()
        assert whole.float().tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 3 + [1.0] * 3
    world.all_gather(torch.zeros(0), torch.zeros(0)).wait()
    handles = [world.all_reduce(torch.ones(4)) for _ in range(20)]
    for handle in reversed(handles):
        handle.wait()
    del handles, handle
    distributed.first_step_passed()
    world.barrier().wait()
    distributed.close()
    try:
        world.barrier()
    except parallel.CollectiveError as error:
        assert "the process group has been closed" in str(error), error
    else:
        raise AssertionError("a closed group still works")
    print("all verbs agree", flush=True)


def train(
    distributed: parallel.Distributed,
    last: str,
    *,
    patient: bool = False,
    pairs: bool = False,
) -> None:
    """Steps of one all_reduce; the last rank misbehaves in step 12 as `last` says.

    Args:
        patient: the others wait for as long as it lives.
        pairs: each rank hears from the one before it instead.
    """
    world = distributed.make_groups({"world": [list(range(distributed.world_size))]})
    for step in range(1, 1000):
        distributed.watch.step = step
        if step == 12 and distributed.rank == distributed.world_size - 1:
            time.sleep(0.3)  # a heartbeat sees the step
            if last == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if last == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if last == "stalled":
                time.sleep(1000)
            if last == "failed":
                raise ValueError("row 7 is\nbad")
            if last == "busy":
                time.sleep(3 * distributed.watch.timeout_seconds)
        if last == "busy" and step == 13:
            return
        with distributed.patiently() if patient else nullcontext():
            if pairs:
                hear_from_neighbour(world["world"])
            else:
                world["world"].all_reduce(torch.ones(1000)).wait()
        if step == 1:
            distributed.first_step_passed()


def hear_from_neighbour(group: parallel.Group) -> None:
    """A number goes once around."""
    received = torch.zeros(1)
    handle = group.recv(received, peer=(group.rank - 1) % group.size)
    group.send(torch.ones(1), peer=(group.rank + 1) % group.size).wait()
    handle.wait()
    assert received.item() == 1.0


def run_rank(
    scenario: str, init_timeout: float, environment: dict[str, str], output: str
) -> None:
    """The whole life of one rank; other arguments as in training_ranks.become_rank."""
    become_rank(environment, output)
    code = play(scenario, init_timeout)
    sys.stdout.flush()
    sys.exit(code)


def play(scenario: str, init_timeout: float) -> int:
    """The exit code of one rank."""
    core.install_stop_signal(echo_seconds=0)
    try:
        distributed = parallel.init_distributed(
            device_type="cpu",
            init_timeout_seconds=init_timeout,
            train_timeout_seconds=3.0,
            heartbeat_seconds=0.1,
        )
    except parallel.CollectiveError as error:
        print(f"LINE {error}", flush=True)
        return parallel.EXIT_RANK_LOST
    try:
        if scenario == "verbs":
            verbs(distributed)
        else:
            last, _, manner = scenario.partition(" ")
            train(
                distributed,
                last,
                patient=manner == "patiently",
                pairs=manner == "in pairs",
            )
    except (parallel.CollectiveError, ValueError) as error:
        print(f"LINE {distributed.report_failure(error)}", flush=True)
        distributed.close(failed=True)
        return parallel.EXIT_RANK_LOST
    distributed.close()
    return 0
