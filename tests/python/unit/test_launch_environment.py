import pytest

from torchtitan_cpp.config import Comm, JobConfig
from torchtitan_cpp.launch_environment import LaunchEnvironment
from torchtitan_cpp.world import find_world_size

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node-7",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


def test_launch_environment_reads_what_torchrun_sets():
    environment = LaunchEnvironment.read(TORCHRUN)
    assert environment is not None
    assert (environment.rank, environment.world_size) == (1, 4)
    assert environment.one_node and environment.launcher_has_store
    assert environment.attempt == 2
    two_nodes = TORCHRUN | {"LOCAL_WORLD_SIZE": "2"}
    assert not LaunchEnvironment.read(two_nodes).one_node
    assert LaunchEnvironment.read({"WORLD_SIZE": "8"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "4"}, "RANK = 4 is not below WORLD_SIZE = 4"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE must be a whole number, but is 'four'"),
        (
            {"MASTER_PORT": None},
            "RANK is set, but MASTER_PORT not: start with torchrun",
        ),
    ],
)
def test_launch_environment_refuses_what_cannot_be(changes, message):
    environ = {k: v for k, v in (TORCHRUN | changes).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        LaunchEnvironment.read(environ)


def test_ranks_that_are_threads_are_counted_by_ngpu_and_have_no_launcher():
    threads = JobConfig(comm=Comm(mode="local_tensor"))
    assert find_world_size(threads, {"NGPU": "4", "WORLD_SIZE": "2"}) == 4
    assert find_world_size(threads, {"WORLD_SIZE": "2"}) == 2
    assert find_world_size(threads, TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) == 1
    with pytest.raises(ValueError, match="a launcher has started 4 processes"):
        find_world_size(threads, TORCHRUN | {"NGPU": "4"})
    with pytest.raises(ValueError, match="NGPU: expected a number of ranks"):
        find_world_size(threads, {"NGPU": "none"})
