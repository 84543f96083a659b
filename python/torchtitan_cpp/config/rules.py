"""Values that contradict each other, and those that do not fit the number of ranks.

Each rule is a row: the field to blame, when it is broken, and what to say. Rows of
``RULES`` need the configuration only, those of ``RUN_RULES`` the run as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torchtitan_cpp.config.job_config import DataLoader, JobConfig, Parallelism
from torchtitan_cpp.config.problems import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Run:
    """A configuration and the machines it meets."""

    config: JobConfig
    world_size: int
    """Ranks of the run."""
    device: Literal["cpu", "cuda"]
    """Kind of device of each rank."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A condition on one field, given others."""

    field: str
    """The field to blame."""
    found: Callable[[Run], str | None]
    """Says what breaks the rule, or returns None where it holds."""
    hint: str = ""
    """What to set instead."""
    given_with: tuple[str, ...] = ()
    """Fields to look for the place of the mistake, if the blamed one was not given."""


def data_parallel_degree(parallelism: Parallelism, world_size: int) -> int | None:
    """Ranks that read different data, or None if the degrees do not fit the ranks."""
    shard = parallelism.data_parallel_shard_degree
    others = _degrees_but_shard(parallelism)
    if shard == -1:
        shard = world_size // others
    if others * shard != world_size:
        return None
    return parallelism.data_parallel_replicate_degree * shard


def _degrees_but_shard(p: Parallelism) -> int:
    return (
        p.data_parallel_replicate_degree
        * p.context_parallel_degree
        * p.tensor_parallel_degree
        * p.pipeline_parallel_degree
    )


def _worker_rules(
    section: str, loader: Callable[[JobConfig], DataLoader]
) -> list[Rule]:
    hint = f"set {section}.dataloader.num_workers"

    def without_workers(
        given: Callable[[DataLoader], bool],
    ) -> Callable[[Run], str | None]:
        def found(run: Run) -> str | None:
            settings = loader(run.config)
            broken = settings.num_workers == 0 and given(settings)
            return "expected only with workers, but num_workers = 0" if broken else None

        return found

    return [
        Rule(
            field=f"{section}.dataloader.persistent_workers",
            found=without_workers(lambda settings: settings.persistent_workers),
            hint=hint,
        ),
        Rule(
            field=f"{section}.dataloader.prefetch_factor",
            found=without_workers(
                lambda settings: settings.prefetch_factor is not None
            ),
            hint=hint,
        ),
    ]


def _profile_freq(run: Run) -> str | None:
    p = run.config.profiling
    cycle = p.profiler_warmup + p.profiler_active
    if not p.enable_profiling or p.profile_freq >= cycle:
        return None
    return (
        f"expected at least profiler_warmup + profiler_active = {cycle}, "
        f"found {p.profile_freq}"
    )


def _hf_model_only(run: Run) -> str | None:
    c = run.config.checkpoint
    broken = c.enable and c.last_save_in_hf and not c.last_save_model_only
    return "Hugging Face files hold only the weights" if broken else None


def _initial_hf_model_only(run: Run) -> str | None:
    c = run.config.checkpoint
    broken = c.enable and c.initial_load_in_hf and not c.initial_load_model_only
    return "Hugging Face files hold only the weights" if broken else None


def _quantized_hf(run: Run) -> str | None:
    c = run.config.checkpoint
    broken = c.enable and c.initial_load_in_hf_quantized and not c.initial_load_in_hf
    return "expected only together with initial_load_in_hf" if broken else None


CHECKPOINT_PARTS = (
    "model",
    "optimizer",
    "optimizer_step",
    "optimizer_numbers",
    "lr_scheduler",
    "train_state",
    "dataloader",
    "rng",
)
"""As the trainer names them; the numbers are of an optimizer of one's own."""


def _excluded_parts(run: Run) -> str | None:
    c = run.config.checkpoint
    unknown = [name for name in c.exclude_from_loading if name not in CHECKPOINT_PARTS]
    if not c.enable or not unknown:
        return None
    hint = did_you_mean(unknown[0], CHECKPOINT_PARTS)
    known = ", ".join(CHECKPOINT_PARTS)
    found = f"expected names among {known}, found {unknown[0]!r}"
    return f"{found}; {hint}" if hint else found


def _seed_checkpoint(run: Run) -> str | None:
    c = run.config.checkpoint
    if c.create_seed_checkpoint and not c.enable:
        return "expected only with checkpoint.enable"
    if c.create_seed_checkpoint and c.load_only:
        return "contradicts checkpoint.load_only"
    loads = c.initial_load_path is not None or c.initial_load_in_hf or c.load_step >= 0
    if c.create_seed_checkpoint and loads:
        return (
            "contradicts loading (initial_load_*, load_step): it holds initial weights"
        )
    return None


def _compute_dtype(run: Run) -> str | None:
    t = run.config.training
    if t.dtype != "float64" or t.mixed_precision_param == "float32":
        return None
    return (
        f"training.dtype = 'float64' would be narrowed to {t.mixed_precision_param!r} "
        "in every product"
    )


def _expert_tensor_degree(run: Run) -> str | None:
    p = run.config.parallelism
    etp, tp = p.expert_tensor_parallel_degree, p.tensor_parallel_degree
    if p.expert_parallel_degree == 1 or etp in (1, tp):
        return None
    return f"expected 1 or tensor_parallel_degree = {tp}, found {etp}"


def _sequence(run: Run) -> str | None:
    return _undivided(run, run.config.training.seq_len)


def _validation_sequence(run: Run) -> str | None:
    validation = run.config.validation
    return _undivided(run, validation.seq_len) if validation.enable else None


def _undivided(run: Run, length: int) -> str | None:
    p = run.config.parallelism
    divisor = p.tensor_parallel_degree
    if p.context_parallel_degree > 1:
        divisor *= 2 * p.context_parallel_degree
    if length % divisor == 0:
        return None
    below = length // divisor * divisor
    nearest = f"{below} or {below + divisor}" if below else str(divisor)
    return (
        f"expected a multiple of {divisor} (tensor_parallel_degree, and twice "
        f"context_parallel_degree), such as {nearest}, found {length}"
    )


def _pipeline_microbatch(run: Run) -> str | None:
    p, batch = run.config.parallelism, run.config.training.local_batch_size
    size = p.pipeline_parallel_microbatch_size
    if p.pipeline_parallel_degree == 1 or batch % size == 0:
        return None
    return (
        f"expected a divisor of training.local_batch_size = {batch} "
        f"({_divisors(batch)}), found {size}"
    )


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _degrees(run: Run) -> str | None:
    p = run.config.parallelism
    if data_parallel_degree(p, run.world_size) is not None:
        return None
    others = _degrees_but_shard(p)
    names = (
        f"dp_replicate {p.data_parallel_replicate_degree} x cp "
        f"{p.context_parallel_degree} x tp {p.tensor_parallel_degree} x pp "
        f"{p.pipeline_parallel_degree}"
    )
    if p.data_parallel_shard_degree == -1:
        return (
            f"expected the other degrees to divide the {run.world_size} ranks, "
            f"found {names} = {others}; their product may be "
            f"{_divisors(run.world_size)}"
        )
    product = others * p.data_parallel_shard_degree
    return (
        f"expected degrees whose product is the number of ranks, {run.world_size}, "
        f"found dp_shard {p.data_parallel_shard_degree} x {names} = {product}; "
        + (
            f"dp_shard {run.world_size // others} fits the others"
            if run.world_size % others == 0
            else f"that of the others may be {_divisors(run.world_size)}"
        )
    )


def _global_batch(run: Run) -> str | None:
    t = run.config.training
    ranks = data_parallel_degree(run.config.parallelism, run.world_size)
    if t.global_batch_size == -1 or ranks is None:
        return None
    pass_size = t.local_batch_size * ranks
    if t.global_batch_size % pass_size == 0:
        return None
    return (
        f"expected a multiple of local_batch_size {t.local_batch_size} x {ranks} data "
        f"ranks = {pass_size}, found {t.global_batch_size}"
    )


def _seed_world(run: Run) -> str | None:
    if run.config.checkpoint.create_seed_checkpoint and run.world_size > 1:
        return f"expected one rank, found {run.world_size}"
    return None


def _snapshot_device(run: Run) -> str | None:
    if run.config.profiling.enable_memory_snapshot and run.device != "cuda":
        return f"snapshots exist on CUDA only, this run is on {run.device}"
    return None


def _offload_device(run: Run) -> str | None:
    if run.config.training.enable_cpu_offload and run.device != "cpu":
        return f"not supported yet: weights in host memory of a run on {run.device}"
    return None


def _ranks_as_threads(run: Run) -> str | None:
    if run.config.comm.mode == "local_tensor" and run.device != "cpu":
        # Autograd has one thread for each GPU. A backward that waits there for a rank
        # whose backward is queued behind it never ends.
        return (
            f"expected a run on the CPU, but this one is on {run.device}, where the "
            "backwards of all threads share one thread and cannot wait for each other; "
            "start the ranks as processes with torchrun, or set CUDA_VISIBLE_DEVICES= "
            "to hide the device"
        )
    return None


def _one_wandb_run(run: Run) -> str | None:
    metrics = run.config.metrics
    several = metrics.enable_wandb and metrics.save_for_all_ranks
    if run.config.comm.mode == "local_tensor" and several and run.world_size > 1:
        return (
            "a process has one W&B run, but all its ranks would log to it (comm.mode = "
            "'local_tensor')"
        )
    return None


_OF_SEQUENCE = (
    "parallelism.tensor_parallel_degree",
    "parallelism.context_parallel_degree",
)

RULES: tuple[Rule, ...] = (
    *_worker_rules("training", lambda config: config.training.dataloader),
    *_worker_rules("validation", lambda config: config.validation.dataloader),
    Rule(
        field="profiling.profile_freq",
        found=_profile_freq,
        given_with=("profiling.profiler_warmup", "profiling.profiler_active"),
        hint="profile less often or shorter",
    ),
    Rule(
        field="checkpoint.last_save_in_hf",
        found=_hf_model_only,
        hint="set checkpoint.last_save_model_only",
    ),
    Rule(
        field="checkpoint.initial_load_in_hf",
        found=_initial_hf_model_only,
        hint="set checkpoint.initial_load_model_only",
    ),
    Rule(field="checkpoint.initial_load_in_hf_quantized", found=_quantized_hf),
    Rule(field="checkpoint.exclude_from_loading", found=_excluded_parts),
    Rule(field="checkpoint.create_seed_checkpoint", found=_seed_checkpoint),
    Rule(
        field="training.mixed_precision_param",
        found=_compute_dtype,
        given_with=("training.dtype",),
        hint="set training.mixed_precision_param = 'float32' (or wider, here float64)",
    ),
    Rule(
        field="parallelism.expert_tensor_parallel_degree", found=_expert_tensor_degree
    ),
    Rule(field="training.seq_len", found=_sequence, given_with=_OF_SEQUENCE),
    Rule(
        field="validation.seq_len", found=_validation_sequence, given_with=_OF_SEQUENCE
    ),
    Rule(
        field="parallelism.pipeline_parallel_microbatch_size",
        found=_pipeline_microbatch,
    ),
)
"""Broken whatever the machines; ``world_size`` and ``device`` are not read."""

RUN_RULES: tuple[Rule, ...] = (
    Rule(
        field="parallelism.data_parallel_shard_degree",
        found=_degrees,
        given_with=(
            "parallelism.data_parallel_replicate_degree",
            "parallelism.tensor_parallel_degree",
            "parallelism.pipeline_parallel_degree",
            "parallelism.context_parallel_degree",
        ),
    ),
    Rule(field="training.global_batch_size", found=_global_batch),
    Rule(field="checkpoint.create_seed_checkpoint", found=_seed_world),
    Rule(
        field="profiling.enable_memory_snapshot",
        found=_snapshot_device,
        hint="set false",
    ),
    Rule(field="training.enable_cpu_offload", found=_offload_device, hint="set false"),
    Rule(
        field="comm.mode",
        found=_ranks_as_threads,
        hint="set CUDA_VISIBLE_DEVICES to nothing, or start processes by torchrun",
    ),
    Rule(field="metrics.save_for_all_ranks", found=_one_wandb_run, hint="set false"),
)
"""Broken on these machines."""
