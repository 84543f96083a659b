"""Sections parallelism, comm and fault_tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torchtitan_cpp.config.constraints import (
    Name,
    NonNegative,
    OneOf,
    Path,
    Positive,
    PositiveOrMinusOne,
)


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """How many ranks share the work in each way; 1 means not at all."""

    data_parallel_replicate_degree: Positive = 1
    """Ranks, or groups of sharding ranks, that hold full copies (DDP, HSDP)."""
    data_parallel_shard_degree: PositiveOrMinusOne = -1
    """Ranks that share one copy of the weights (FSDP). -1: all ranks left over."""
    fsdp_reshard_after_forward: Literal["default", "always", "never"] = "default"
    """Free gathered weights after the forward; default: unless pipeline parallel."""
    tensor_parallel_degree: Positive = 1
    """Ranks that share every matrix, with whole heads, and between matrices tokens."""
    disable_loss_parallel: bool = False
    """With tensor parallelism: gather the logits before the loss."""
    enable_async_tensor_parallel: bool = False
    """Tensor parallelism of C++ models: overlap its exchanges with the products."""
    pipeline_parallel_degree: Positive = 1
    """Ranks that hold consecutive parts of the model."""
    module_fqns_per_model_part: list[list[str]] | None = None
    """Names of the modules of each part, in order. None: split by layers."""
    pipeline_parallel_first_stage_less_layers: NonNegative = 1
    """Layers that the embedding counts for when the model is split."""
    pipeline_parallel_last_stage_less_layers: NonNegative = 1
    """Layers that final norm and output count for when the model is split."""
    pipeline_parallel_layers_per_stage: Positive | None = None
    """Layers of each part. None: from model, schedule and degree."""
    pipeline_parallel_schedule: Name = "1F1B"
    """Name of the pipeline schedule. No effect without pipeline parallelism."""
    pipeline_parallel_schedule_csv: Path | None = ""
    """File with a schedule that replaces the named one. Empty: none."""
    pipeline_parallel_microbatch_size: Positive = 1
    """Sequences of one pipeline microbatch; divides the local batch size."""
    pipeline_parallel_expert_parallel_overlap: bool = True
    """With DualPipeV and expert parallelism: overlap forward and backward."""
    context_parallel_degree: Positive = 1
    """Ranks that share each sequence."""
    context_parallel_load_balancer: (
        Annotated[str, OneOf(("headtail", "ptrr"))] | None
    ) = "headtail"
    """How a sequence is dealt out so that all ranks work alike. None: in order."""
    context_parallel_rotate_method: Literal["allgather", "alltoall", "ulysses"] = (
        "allgather"
    )
    """How ranks share keys: all at once, around a ring, or heads for tokens."""
    expert_parallel_degree: Positive = 1
    """Ranks that share the experts. No effect in models without experts."""
    expert_tensor_parallel_degree: Positive = 1
    """Ranks that share every expert; 1 or tensor_parallel_degree."""
    expert_parallel_comm_backend: Literal["standard", "deepep"] = "standard"
    """How tokens travel to their experts."""


@dataclass(frozen=True, kw_only=True)
class Comm:
    """Communication between ranks."""

    init_timeout_seconds: Positive = 300
    """Longest wait in the first step, and for a rank that stands still in a save."""
    train_timeout_seconds: Positive = 100
    """Longest wait for other ranks in a step after the first one."""
    trace_buf_size: NonNegative = 20000
    """Last collectives that each rank keeps for its flight record. 0: none."""
    save_traces_folder: Name = "comm_traces"
    """Folder of the records of a run that ended badly, below job.dump_folder."""
    save_traces_file_prefix: str = "rank_"
    """Their names are this prefix, the rank and .json."""
    mode: Literal["default", "fake_backend", "local_tensor"] = "default"
    """local_tensor: NGPU ranks as CPU threads; fake_backend: one rank, no computing."""


@dataclass(frozen=True, kw_only=True)
class FaultTolerance:
    """Replicas that may leave and join while the others train."""

    enable: bool = False
    """Train with replicas that may leave."""
    process_group: Annotated[str, OneOf(("gloo", "nccl"))] = "gloo"
    """Backend between replicas."""
    process_group_timeout_ms: Positive = 10000
    """Longest wait of an operation between replicas, in milliseconds."""
    replica_id: NonNegative = 0
    """Which replica this run is."""
    group_size: NonNegative = 0
    """Largest number of replicas; the data is split by it."""
    min_replica_size: Positive = 1
    """Replicas that every step needs."""
    semi_sync_method: Annotated[str, OneOf(("local_sgd", "diloco"))] | None = None
    """Synchronise replicas only now and then, by this method."""
