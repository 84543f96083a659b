import os
import signal
import subprocess
import sys

import pytest
import torch

from torchtitan_cpp import parallel

# As torchrun --nproc_per_node 1 sets them.
ALONE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}
MESH = {"dp": [[0, 2], [1, 3]], "tp": [[0, 1], [2, 3]], "pp": [[0], [1], [2], [3]]}


def start(environ, **changes):
    return parallel.init_distributed(
        device_type="cpu",
        init_timeout_seconds=5,
        train_timeout_seconds=2,
        environ=environ,
        **changes,
    )


@pytest.mark.parametrize("environ", [{}, ALONE])
def test_one_rank_needs_no_process_group(environ):
    with start(environ) as distributed:
        groups = distributed.make_groups({"world": [[0]], "fsdp": [[0]]})
        assert groups["fsdp"].size == 1 and groups["fsdp"].name == "fsdp"
        assert distributed.watch.timeout_seconds == 5
        distributed.first_step_passed()
        assert distributed.watch.timeout_seconds == 2
        assert distributed.report_failure(ValueError("row 7\nis bad")) == "row 7"
        assert not torch.distributed.is_initialized()


def test_axes_must_hold_every_rank_once():
    assert parallel.own_ranks(MESH["dp"], "dp", 3, 4) == [1, 3]
    with pytest.raises(ValueError, match=r"axis 'dp' must hold each of 3 ranks once"):
        parallel.own_ranks([[0, 1], [1, 2]], "dp", 0, 3)


def test_fake_groups_have_the_places_of_a_rank():
    recorder = parallel.Recorder()
    groups = parallel.make_fake_groups(MESH, rank=2, world_size=4, recorder=recorder)
    assert (groups["dp"].rank, groups["dp"].size) == (1, 2)
    assert (groups["tp"].rank, groups["pp"].size) == (0, 1)
    groups["dp"].all_reduce(torch.empty(8, device="meta")).wait()
    groups["pp"].all_reduce(torch.empty(8, device="meta")).wait()
    assert recorder.totals().keys() == {("dp", "all_reduce")}
    assert recorder.total("dp", "all_reduce").bytes == 32


def test_threads_reduce_over_the_axes_of_a_mesh():
    world = parallel.LocalWorld(4, timeout_seconds=30)

    def body(rank):
        groups = parallel.make_local_groups(world, MESH, rank=rank)
        tensor = torch.full((2,), float(rank), dtype=torch.float64)
        handle = groups["dp"].all_reduce(tensor)
        handle.wait()
        assert handle.completed()
        groups["pp"].all_reduce(tensor).wait()
        return tensor[0].item()

    assert parallel.run_local(world, body) == [2.0, 4.0, 2.0, 4.0]


def test_threads_end_with_the_first_cause_and_it_is_raised():
    world = parallel.LocalWorld(3, timeout_seconds=30)
    seen = []

    def body(rank):
        if rank == 1:
            raise KeyError("no such row")
        try:
            world.group(rank).barrier().wait()
        except parallel.CollectiveError as error:
            seen.append(str(error))
            raise

    with pytest.raises(KeyError, match="no such row"):
        parallel.run_local(world, body)
    assert seen == ["rank 1: KeyError: 'no such row'"] * 2


def test_a_group_refuses_a_wrong_shape_as_value_error():
    group = parallel.make_fake_groups(MESH, rank=0, world_size=4)["dp"]
    with pytest.raises(ValueError, match="all_gather: out must have 2 x 3 elements"):
        group.all_gather(torch.zeros(3), torch.zeros(3))


def test_sigterm_sets_a_flag_and_the_second_one_ends_the_process():
    code = """
import os, signal
from torchtitan_cpp._C import core
signal.signal(signal.SIGTERM, lambda *_: print("python's handler"))
core.install_stop_signal(echo_seconds=0)
assert not core.stop_requested()
os.kill(os.getpid(), signal.SIGTERM)
assert core.stop_requested()
print("still here", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("not reached")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert result.stdout == "still here\n", result.stderr
    assert result.returncode == -signal.SIGTERM
