"""Small configurations of one rank of a mesh whose other ranks do not exist."""

from __future__ import annotations

from torchtitan_cpp.config import JobConfig, check_run, read_config

SMALL = ("--training.local_batch_size=2", "--training.seq_len=128")


def config_of(*flags: str, world_size: int = 1) -> JobConfig:
    loaded = read_config(["--comm.mode=fake_backend", *SMALL, *flags])
    return check_run(loaded, world_size=world_size)
