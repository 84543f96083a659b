import pytest

from torchtitan_cpp.launch_environment import LaunchEnvironment

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
