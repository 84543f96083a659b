"""The parts of the configuration and of the mesh that metrics read."""

from __future__ import annotations

from typing import Protocol


class MetricsSection(Protocol):
    """The section ``metrics``."""

    @property
    def log_freq(self) -> int: ...
    @property
    def enable_tensorboard(self) -> bool: ...
    @property
    def disable_color_printing(self) -> bool: ...
    @property
    def save_tb_folder(self) -> str: ...
    @property
    def save_for_all_ranks(self) -> bool: ...
    @property
    def enable_wandb(self) -> bool: ...


class JobSection(Protocol):
    """The section ``job``."""

    @property
    def dump_folder(self) -> str: ...


class ParallelismSection(Protocol):
    """The section ``parallelism``."""

    @property
    def pipeline_parallel_schedule(self) -> str: ...


class FaultToleranceSection(Protocol):
    """The section ``fault_tolerance``."""

    @property
    def enable(self) -> bool: ...
    @property
    def replica_id(self) -> int: ...


class MetricsJobConfig(Protocol):
    """A job configuration as far as metrics go."""

    @property
    def metrics(self) -> MetricsSection: ...
    @property
    def job(self) -> JobSection: ...
    @property
    def parallelism(self) -> ParallelismSection: ...
    @property
    def fault_tolerance(self) -> FaultToleranceSection: ...


class ParallelDegrees(Protocol):
    """The degrees of ``ParallelDims`` that metrics depend on."""

    @property
    def pp(self) -> int: ...
    @property
    def cp(self) -> int: ...
    @property
    def tp(self) -> int: ...
    @property
    def world_size(self) -> int: ...
