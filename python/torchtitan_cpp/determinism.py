"""Seeds and deterministic algorithms."""

from __future__ import annotations

import os

import torch

from torchtitan_cpp.config import Debug
from torchtitan_cpp.rank_thread import turn
from torchtitan_cpp.world import World


def set_determinism(debug: Debug) -> None:
    """Seed torch's generators and choose deterministic algorithms, as asked."""
    if debug.seed is not None:
        with turn():
            torch.manual_seed(debug.seed)
    if debug.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(
            True, warn_only=debug.deterministic_warn_only
        )


def agree_on_seed(debug: Debug, world: World) -> int:
    """The seed of initial weights: the configured one, or one that rank 0 draws."""
    if debug.seed is not None:
        return debug.seed
    if world.is_fake:
        return 0
    with turn():
        drawn = torch.seed()
    seed = torch.tensor(drawn % 2**63, device=world.device)
    world.groups["world"].broadcast(seed, root=0).wait()
    return int(seed)
