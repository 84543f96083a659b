"""The dense rows of torchtitan's feature tests (v0.2.2): their flags, and what is said.

Left out are float8_emulation, test_generate and fsdp2_memory_estimation. In a flag,
``{out}`` is the row's folder and ``{csv}`` a file with a schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

TP_2 = "--parallelism.tensor_parallel_degree 2"
CP_2 = "--parallelism.context_parallel_degree 2"
CP_4 = "--parallelism.context_parallel_degree 4"
PP_2 = "--parallelism.pipeline_parallel_degree 2"
PP_4 = "--parallelism.pipeline_parallel_degree 4"
SHARD_1 = "--parallelism.data_parallel_shard_degree 1"
SHARD_2 = "--parallelism.data_parallel_shard_degree 2"
SHARD_4 = "--parallelism.data_parallel_shard_degree 4"
REPLICATE_2 = "--parallelism.data_parallel_replicate_degree 2"
REPLICATE_4 = "--parallelism.data_parallel_replicate_degree 4"
SCHEDULE = "--parallelism.pipeline_parallel_schedule"
LAYERS = "--parallelism.pipeline_parallel_layers_per_stage"
ROTATE = "--parallelism.context_parallel_rotate_method"
RECOMPUTE = "--activation_checkpoint.mode"
BY_OPERATION = f"{RECOMPUTE} selective --activation_checkpoint.selective_ac_option op"
COMPILE = "--compile.enable"
SAVE = "--checkpoint.enable"
ONLY_WEIGHTS = "--checkpoint.last_save_model_only"
LONGER = "--training.steps 20"
OFFLOAD = "--training.enable_cpu_offload --optimizer.early_step_in_backward"

COMPILED = "compile.enable changes nothing: C++ models are fused as they are"
OFFLOADED = "enable_cpu_offload changes nothing on a CPU run"
EARLY = "max_norm is unused with early_step_in_backward"
RESUMED = "training goes on after step 10"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One start of the trainer."""

    flags: str
    """As in a shell; those of a row."""
    says: tuple[str, ...]
    """Texts that a person reads in its output."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Runs one after another in one folder."""

    name: str
    """Torchtitan's."""
    ranks: int
    runs: tuple[Run, ...]
    ordinary: bool
    """Whether it is one of those that run in every suite, which have every flag."""


def row(name: str, ranks: int, *runs: tuple[str, ...], ordinary: bool = False) -> Row:
    """A row.

    Args:
        runs: flags of each, and behind them what it says.
    """
    made = tuple(Run(flags=flags, says=says) for flags, *says in runs)
    return Row(name=name, ranks=ranks, runs=made, ordinary=ordinary)


ROWS = (
    row(
        "default",
        4,
        (
            "--profiling.enable_profiling --metrics.enable_tensorboard",
            "4 ranks: dp_shard 4",
            "selective, every 2. block",
        ),
        ordinary=True,
    ),
    row("1d_compile", 4, (COMPILE, "4 ranks: dp_shard 4", COMPILED)),
    row(
        "1d_compile_sac_op",
        4,
        (f"{COMPILE} {BY_OPERATION}", COMPILED, "selective, by operation"),
    ),
    row("2d_eager", 4, (TP_2, "4 ranks: dp_shard 2 x tp 2")),
    row("2d_compile", 4, (f"{COMPILE} {TP_2}", "dp_shard 2 x tp 2", COMPILED)),
    row(
        "2d_asynctp_compile",  # disabled in torchtitan
        4,
        (
            f"{COMPILE} {TP_2} --parallelism.enable_async_tensor_parallel",
            "4 ranks: dp_shard 2 x tp 2",
            "tensor parallel: exchanges overlap with products",
            COMPILED,
        ),
        ordinary=True,
    ),
    row(
        "full_checkpoint",
        4,
        (SAVE, "every 10 steps in"),
        (f"{SAVE} {LONGER}", RESUMED),
    ),
    row(
        "model_only_hf_checkpoint",
        4,
        (
            f"{SAVE} --checkpoint.folder hf_checkpoint {ONLY_WEIGHTS} "
            "--checkpoint.last_save_in_hf",
            "hf_checkpoint",
        ),
        (
            f"{SAVE} --checkpoint.initial_load_path {{out}}/hf_checkpoint/step-10/ "
            "--checkpoint.initial_load_model_only --checkpoint.initial_load_in_hf",
            "Loaded the weights in",
        ),
        ordinary=True,
    ),
    row("last_save_model_only_fp32", 4, (f"{SAVE} {ONLY_WEIGHTS}",)),
    row(
        "last_save_model_only_bf16",
        4,
        (f"{SAVE} {ONLY_WEIGHTS} --checkpoint.export_dtype bfloat16",),
        ordinary=True,
    ),
    row(
        "pp_looped_zero_bubble",
        4,
        (
            f"{PP_4} {SCHEDULE} InterleavedZeroBubble",
            "4 ranks: pp 4",
            "pipeline InterleavedZeroBubble: 8 stages, 8 microbatches",
        ),
    ),
    row(
        "pp_zbv",
        2,
        (
            f"{PP_2} {SCHEDULE} ZBVZeroBubble",
            "2 ranks: pp 2",
            "pipeline ZBVZeroBubble: 4 stages, 8 microbatches",
        ),
    ),
    row(
        "pp_1f1b",
        2,
        (f"{PP_2} {SCHEDULE} 1F1B {SHARD_1}", "pipeline 1F1B: 2 stages"),
    ),
    row(
        "pp_gpipe",
        2,
        (f"{PP_2} {SCHEDULE} GPipe {SHARD_1}", "pipeline GPipe: 2 stages"),
    ),
    row(
        "pp_dp_1f1b",
        4,
        (
            f"{PP_2} {SCHEDULE} 1F1B {SHARD_2}",
            "4 ranks: pp 2 x dp_shard 2",
            "pipeline 1F1B: 2 stages, 8 microbatches",
        ),
        (
            f"{PP_2} {SCHEDULE} 1F1B {LAYERS} 4 {SHARD_2}",
            "pipeline 1F1B: 2 stages, 8 microbatches",
        ),
    ),
    row(
        "pp_dp_gpipe",
        4,
        (
            f"{PP_2} {SCHEDULE} GPipe {SHARD_2}",
            "4 ranks: pp 2 x dp_shard 2",
            "pipeline GPipe: 2 stages",
        ),
    ),
    row(
        "pp_tp",
        4,
        (f"{PP_2} {TP_2}", "4 ranks: pp 2 x tp 2", "pipeline 1F1B: 2 stages"),
    ),
    row(
        "pp_dp_tp",
        8,
        (f"{SAVE} {PP_2} {SHARD_2} {TP_2}", "8 ranks: pp 2 x dp_shard 2 x tp 2"),
        (
            f"{LONGER} {SAVE} {PP_2} {SHARD_2} {TP_2}",
            "8 ranks: pp 2 x dp_shard 2 x tp 2",
            RESUMED,
        ),
    ),
    row(
        "3d_compile",
        8,
        (
            f"{PP_2} {SHARD_2} {TP_2} {COMPILE}",
            "8 ranks: pp 2 x dp_shard 2 x tp 2",
            COMPILED,
        ),
    ),
    row(
        "pp_looped_1f1b",
        4,
        (
            f"{PP_4} {SCHEDULE} Interleaved1F1B",
            "4 ranks: pp 4",
            "pipeline Interleaved1F1B: 8 stages, 8 microbatches",
        ),
        (
            f"{PP_4} {SCHEDULE} Interleaved1F1B {LAYERS} 1",
            "pipeline Interleaved1F1B: 8 stages, 8 microbatches",
        ),
        ordinary=True,
    ),
    row(
        "pp_custom_csv",
        2,
        (
            f"{PP_2} {SCHEDULE} PipelineScheduleMulti {SCHEDULE}_csv {{csv}}",
            "2 ranks: pp 2",
            "schedule.csv: 4 stages, 8 microbatches",
        ),
        ordinary=True,
    ),
    row(
        "optimizer_foreach",
        2,
        ("--optimizer.name AdamW --optimizer.implementation foreach", ", foreach;"),
        ordinary=True,
    ),
    row("ddp", 4, (f"{SHARD_1} {REPLICATE_4}", "4 ranks: dp_replicate 4")),
    row(
        "hsdp",
        4,
        (f"{SHARD_2} {REPLICATE_2}", "4 ranks: dp_replicate 2 x dp_shard 2"),
    ),
    row(
        "fsdp+flex_attn",
        4,
        (
            f"{SHARD_4} {RECOMPUTE}='full' --model.flavor=debugmodel_flex_attn",
            "llama3 debugmodel_flex_attn",
            "recompute    full",
        ),
    ),
    row(
        "fsdp+flex_attn+per_op_sac",
        4,
        (
            f"{SHARD_4} {BY_OPERATION} --model.flavor=debugmodel_flex_attn",
            "llama3 debugmodel_flex_attn",
            "selective, by operation",
        ),
        ordinary=True,
    ),
    row(
        "fsdp+varlen_attn+per_op_sac",
        4,
        (
            f"{SHARD_4} {BY_OPERATION} --model.flavor=debugmodel_varlen_attn",
            "llama3 debugmodel_varlen_attn",
            "selective, by operation",
        ),
    ),
    row(
        "cp_allgather",
        4,
        (
            f"{CP_4} {ROTATE}='allgather'",
            "4 ranks: cp 4",
            "context parallel by allgather, tokens dealt out by headtail",
        ),
    ),
    row(
        "cp_alltoall",
        4,
        (
            f"{CP_4} {ROTATE}='alltoall'",
            "4 ranks: cp 4",
            "context parallel by alltoall, tokens dealt out by headtail",
        ),
        ordinary=True,
    ),
    row(
        "hsdp+tp",
        8,
        (
            f"{SHARD_2} {REPLICATE_2} {TP_2}",
            "8 ranks: dp_replicate 2 x dp_shard 2 x tp 2",
        ),
    ),
    row("fsdp+cp", 4, (f"{SHARD_2} {CP_2}", "4 ranks: dp_shard 2 x cp 2")),
    row(
        "hsdp+cp_without_dp_shard",
        4,
        (f"{SHARD_1} {REPLICATE_2} {CP_2}", "4 ranks: dp_replicate 2 x cp 2"),
        ordinary=True,
    ),
    row(
        "hsdp+cp_with_dp_shard",
        8,
        (
            f"{SHARD_2} {REPLICATE_2} {CP_2}",
            "8 ranks: dp_replicate 2 x dp_shard 2 x cp 2",
        ),
    ),
    row(
        "fsdp+tp+cp",
        8,
        (f"{SHARD_2} {TP_2} {CP_2}", "8 ranks: dp_shard 2 x cp 2 x tp 2"),
    ),
    row(
        "cpu_offload+opt_in_bwd+TP+DP+CP",
        8,
        (
            f"{SAVE} {TP_2} {CP_2} {OFFLOAD}",
            "8 ranks: dp_shard 2 x cp 2 x tp 2",
            OFFLOADED,
            EARLY,
        ),
        (
            f"{TP_2} {CP_2} {REPLICATE_2} {OFFLOAD}",
            "8 ranks: dp_replicate 2 x cp 2 x tp 2",
            OFFLOADED,
            EARLY,
        ),
        ordinary=True,
    ),
    row(
        "fsdp_reshard_always",
        2,
        (
            "--parallelism.fsdp_reshard_after_forward always",
            "gathered weights are freed after every forward",
        ),
        ordinary=True,
    ),
    row(
        "optional_checkpoint",
        4,
        (f"{SAVE} --training.steps 10", "4 ranks: dp_shard 4"),
        (
            f"{SAVE} --checkpoint.exclude_from_loading "
            f"lr_scheduler,dataloader,optimizer {TP_2} {LONGER}",
            "4 ranks: dp_shard 2 x tp 2",
            RESUMED,
        ),
        ordinary=True,
    ),
    row(
        "gradient_accumulation",
        2,
        (
            "--training.local_batch_size 8 --training.global_batch_size 32",
            "(8 sequences x 2 ranks x 2 microbatches)",
        ),
        ordinary=True,
    ),
    row(
        "validation_tp_cp_pp",
        8,
        (
            f"--validation.enable --validation.dataset c4_test {TP_2} {CP_2} {PP_2} "
            f"{SCHEDULE} Interleaved1F1B",
            "8 ranks: pp 2 x cp 2 x tp 2",
            "pipeline Interleaved1F1B: 4 stages, 8 microbatches",
        ),
        ordinary=True,
    ),
    row(
        "dataloader_kwargs",
        2,
        (
            "--training.dataloader.num_workers 2 --training.dataloader.pin_memory "
            "--training.dataloader.persistent_workers "
            "--training.dataloader.prefetch_factor 4",
            "2 workers a rank",
        ),
        ordinary=True,
    ),
)
