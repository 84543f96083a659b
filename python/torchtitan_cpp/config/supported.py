"""What is not built yet, in one table.

A row refuses a value as soon as it would change the run; a value without effect passes
(a schedule's name without pipeline parallelism, a filter list without a converter).
Building a feature means deleting its row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchtitan_cpp.config.aliases import CONVERTERS
from torchtitan_cpp.config.job_config import JobConfig


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A value that this version cannot honour."""

    field: str
    """Dotted name of the field to blame."""
    needed: Callable[[JobConfig], bool]
    """Whether the value would change the run."""
    what: str
    """The missing feature."""
    hint: str
    """What to set instead."""


NOT_SUPPORTED_YET: tuple[Missing, ...] = (
    Missing(
        field="model.converters",
        # Any other name is unknown rather than not supported yet.
        needed=lambda c: any(name in CONVERTERS for name in c.model.converters),
        what="quantized training",
        hint="set model.converters = []",
    ),
    Missing(
        field="parallelism.expert_parallel_degree",
        needed=lambda c: c.parallelism.expert_parallel_degree > 1,
        what="expert parallelism",
        hint="set 1",
    ),
    Missing(
        field="memory_estimation.enable",
        needed=lambda c: c.memory_estimation.enable,
        what="estimation of memory by running on fake tensors",
        hint="scripts/estimate_memory.py predicts it for any mesh; leave it out",
    ),
    Missing(
        field="fault_tolerance.enable",
        needed=lambda c: c.fault_tolerance.enable,
        what="replicas that may leave",
        hint="set false",
    ),
)

WITHOUT_EFFECT_UNLESS: dict[str, str] = {
    "checkpoint.enable_ft_dataloader_checkpoints": "fault_tolerance.enable",
    "debug.moe_force_load_balance": "parallelism.expert_parallel_degree",
    "fault_tolerance.*": "fault_tolerance.enable",
    "memory_estimation.disable_fake_mode": "memory_estimation.enable",
    "parallelism.expert_*": "parallelism.expert_parallel_degree",
    "parallelism.pipeline_parallel_expert_parallel_overlap": (
        "parallelism.expert_parallel_degree"
    ),
    "quantize.*": "model.converters",
}
"""Fields that nothing reads yet, by name or pattern, and the row above that needs them.

Every other field is read outside of this package; a test looks for it.
"""
