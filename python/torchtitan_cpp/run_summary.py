"""What the texts before the first step and after the last say of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from torchtitan_cpp.config import compute_dtype, reduce_dtype
from torchtitan_cpp.logging import shown_ranks
from torchtitan_cpp.metrics.summary import RunSummary
from torchtitan_cpp.nn import CppModule
from torchtitan_cpp.own_optimizers import OwnOptimizers
from torchtitan_cpp.pipeline import NOT_OVERLAPPED
from torchtitan_cpp.step_bytes import bytes_by_axis

if TYPE_CHECKING:
    from torchtitan_cpp.trainer import Trainer


def summarize(trainer: Trainer) -> RunSummary:
    """What a person should know before the first step."""
    config = trainer.job_config
    training = config.training
    dims = trainer.world.parallel_dims
    schedule = config.lr_scheduler
    data = training.dataset
    if training.dataset_path:
        data += f" from {training.dataset_path}"
    if workers := training.dataloader.num_workers:
        data += f", {workers} worker{'s' if workers > 1 else ''} a rank"
    saving = config.checkpoint
    return RunSummary(
        model=f"{config.model.name} {config.model.flavor}",
        num_params=trainer.model.num_params,
        flops_per_token=trainer.model.flops_per_token,
        mesh={
            "pp": dims.pp,
            "dp_replicate": dims.dp_replicate,
            "dp_shard": dims.dp_shard,
            "cp": dims.cp,
            "tp": dims.tp,
        },
        device=_describe_device(trainer.world.device),
        local_batch_size=training.local_batch_size,
        num_data_ranks=dims.batch,
        accumulation=trainer.accumulation,
        seq_len=training.seq_len,
        start_step=trainer.step,
        steps=training.steps,
        dataset=data,
        tokenizer=_describe_tokenizer(trainer),
        param_dtype=training.dtype,
        compute_dtype=compute_dtype(training),
        reduce_dtype=reduce_dtype(training),
        activation_checkpointing=_describe_recompute(trainer),
        optimizer=_describe_optimizer(trainer),
        clipping=_describe_clipping(trainer),
        schedule=f"{schedule.warmup_steps} warmup steps, {schedule.decay_type} "
        f"decay to {schedule.min_lr_factor:g} x lr",
        checkpoint=f"every {saving.interval} steps in {trainer.checkpointer.folder}"
        if saving.enable and not trainer.world.is_fake
        else "off",
        dump_folder=None if trainer.world.is_fake else config.job.dump_folder,
        seed=trainer.seed,
        bytes_by_axis=_bytes_by_axis(trainer),
        notes=tuple(_notes(trainer)),
    )


def files_of(trainer: Trainer) -> dict[str, Path]:
    """Where a run with these settings writes what; some may not be there yet."""
    config = trainer.job_config
    folder = Path(config.job.dump_folder)
    loggers = folder / config.metrics.save_tb_folder
    profiling = config.profiling
    settings = config.job.save_config_file
    files = {
        "settings": (settings is not None, folder / (settings or "")),
        "metrics": (True, folder / "metrics.jsonl"),
        "validation": (config.validation.enable, folder / "validation.jsonl"),
        "tensorboard": (config.metrics.enable_tensorboard, loggers),
        "wandb": (config.metrics.enable_wandb, loggers),
        "traces": (profiling.enable_profiling, folder / profiling.save_traces_folder),
        "snapshots": (
            profiling.enable_memory_snapshot,
            folder / profiling.save_memory_snapshot_folder,
        ),
        "timelines": (
            profiling.enable_timeline,
            folder / profiling.save_timeline_folder,
        ),
        "checkpoints": (config.checkpoint.enable, Path(trainer.checkpointer.folder)),
    }
    return {label: path for label, (written, path) in files.items() if written}


def _bytes_by_axis(trainer: Trainer) -> dict[str, int | None]:
    """Of the steps of a rank whose summary is shown; a dry run reports them itself."""
    if trainer.world.is_fake or trainer.world.rank not in shown_ranks():
        return {}
    return bytes_by_axis(trainer.model, trainer.job_config, trainer.world)


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "meta":
        return "none: a dry run that computes nothing"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''} a rank"


def _describe_tokenizer(trainer: Trainer) -> str | None:
    if trainer.tokenizer is None:
        return None
    size = trainer.tokenizer.get_vocab_size()
    return f"{trainer.job_config.model.hf_assets_path}, {size:,} entries"


def _describe_recompute(trainer: Trainer) -> str:
    section = trainer.job_config.activation_checkpoint
    compiled = not isinstance(trainer.model.module, CppModule)
    if section.mode == "memory_budget" and compiled:
        return f"memory budget {section.memory_budget:g}, by the compiler"
    if section.mode == "memory_budget":
        kept, again = trainer.model.applied.memory_budget_choice
        return (
            f"memory budget {section.memory_budget:g}: a microbatch keeps "
            f"{kept / 2**20:,.1f} MiB in its blocks and computes {again / 1e12:,.3f} "
            "Tflop again"
        )
    if section.mode == "selective" and section.selective_ac_option == "op":
        return "selective, by operation"
    if section.mode == "selective":
        return f"selective, every {section.selective_ac_option}. block"
    return str(section.mode)


def _describe_optimizer(trainer: Trainer) -> str:
    if isinstance(trainer.optimizers, OwnOptimizers):
        kinds = ", ".join(type(each).__name__ for each in trainer.optimizers)
        return f"{kinds}, lr {trainer.optimizers.learning_rate:.1e} in the first step"
    section = trainer.job_config.optimizer
    return (
        f"{section.name}, lr {section.lr:.1e}, weight decay {section.weight_decay:g}, "
        f"{section.implementation}"
    )


def _describe_compilation(trainer: Trainer) -> str:
    if isinstance(trainer.model.module, CppModule):
        return "compile.enable changes nothing: C++ models are fused as they are"
    section = trainer.job_config.compile
    parts = " and ".join(
        {"model": "each layer", "loss": "the loss"}[name] for name in section.components
    )
    return f"{section.backend} compiles {parts or 'nothing'} at the first call"


def _describe_clipping(trainer: Trainer) -> str:
    if trainer.job_config.optimizer.early_step_in_backward:
        return "none: max_norm is unused with early_step_in_backward"
    return f"global norm {trainer.job_config.training.max_norm:g}"


def _notes(trainer: Trainer) -> list[str]:
    notes = _describe_parallelisms(trainer)
    if trainer.world.is_local:
        notes.append(
            "the ranks are threads of one process (comm.mode local_tensor), whose "
            "memory the lines of steps show"
        )
    if trainer.job_config.training.enable_cpu_offload and (
        trainer.world.device.type == "cpu"
    ):
        notes.append("enable_cpu_offload changes nothing on a CPU run")
    if host := trainer.model.applied.host:
        notes.append(
            "activations of blocks wait in host memory for their backward"
            if host.moves
            else "activation_checkpoint.offload changes nothing on a CPU run"
        )
    if trainer.job_config.compile.enable:
        notes.append(_describe_compilation(trainer))
    return notes


def _describe_parallelisms(trainer: Trainer) -> list[str]:
    """How ranks share the work, where the configuration leaves a choice."""
    chosen, dims = trainer.job_config.parallelism, trainer.world.parallel_dims
    notes = []
    if pipeline := trainer.model.pipeline:
        schedule = pipeline.schedule
        rounds = f" x {pipeline.rounds} rounds" if pipeline.rounds > 1 else ""
        name = (
            chosen.pipeline_parallel_schedule_csv or chosen.pipeline_parallel_schedule
        )
        notes.append(
            f"pipeline {name}: {schedule.num_stages} stages, "
            f"{schedule.num_microbatches} microbatches{rounds}, "
            f"{pipeline.simulate().bubble:.0%} idle if all stages take equally long"
        )
        if not isinstance(trainer.model.module, CppModule) and schedule.overlaps:
            notes.append(f"pipeline {name}: {NOT_OVERLAPPED}")
    if dims.cp > 1:
        notes.append(
            f"context parallel by {chosen.context_parallel_rotate_method}, tokens "
            f"dealt out by {chosen.context_parallel_load_balancer or 'position'}"
        )
    if dims.tp > 1 and chosen.enable_async_tensor_parallel:
        notes.append("tensor parallel: exchanges overlap with products")
    if dims.dp_shard * dims.cp > 1:
        kept = {
            "always": "freed after every forward",
            "never": "kept until the backward",
        }.get(chosen.fsdp_reshard_after_forward)
        notes += [f"gathered weights are {kept}"] if kept else []
    return notes
