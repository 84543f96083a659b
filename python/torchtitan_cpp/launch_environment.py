"""What torchrun tells a process through environment variables; read nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LaunchEnvironment:
    """What torchrun tells a process, read from its environment variables."""

    rank: int
    """Of this process, 0 <= rank < world_size."""
    world_size: int
    """Number of processes."""
    local_rank: int
    """Of this process on its node; selects the CUDA device."""
    one_node: bool
    """All processes run on this machine, so loopback is enough."""
    master_addr: str
    """Host of the store in which processes meet."""
    master_port: int
    """Port of that store."""
    launcher_has_store: bool
    """The launcher holds the store, so that it survives rank 0."""
    attempt: int
    """How often the launcher has restarted the processes."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> LaunchEnvironment | None:
        """Read torchrun's variables; None where ``RANK`` is not set.

        Raises:
            ValueError: naming the variables that are missing or no whole numbers.
        """
        if "RANK" not in environ:
            return None
        needed = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in needed if name not in environ]
        if missing:
            raise ValueError(
                f"RANK is set, but {', '.join(missing)} not: start with torchrun, or "
                "unset RANK to train with one rank"
            )
        rank = _number(environ, "RANK", 0)
        world_size = _number(environ, "WORLD_SIZE", 1)
        local_world_size = _number(environ, "LOCAL_WORLD_SIZE", 0)
        if not 0 <= rank < world_size:
            raise ValueError(f"RANK = {rank} is not below WORLD_SIZE = {world_size}")
        address = environ["MASTER_ADDR"]
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=_number(environ, "LOCAL_RANK", 0),
            one_node=local_world_size == world_size
            or address in ("localhost", "127.0.0.1", "::1"),
            master_addr=address,
            master_port=_number(environ, "MASTER_PORT", 0),
            launcher_has_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=_number(environ, "TORCHELASTIC_RESTART_COUNT", 0),
        )


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name} must be a whole number, but is {text!r}")
    return int(text)
