"""What contradicts, does not fit the ranks, is missing or is not supported yet."""

from __future__ import annotations

import fnmatch
import subprocess
import sys

import pytest

from torchtitan_cpp.config import (
    ConfigError,
    JobConfig,
    Model,
    Training,
    check_run,
    compute_dtype,
    data_parallel_degree,
    load_config,
    read_config,
    reduce_dtype,
    run_problems,
    state_dtype,
    unsupported,
)
from torchtitan_cpp.config.check import contradictions
from torchtitan_cpp.config.schema import schema_of
from torchtitan_cpp.config.supported import NOT_SUPPORTED_YET, WITHOUT_EFFECT_UNLESS

# For every row of the table: flags that need the feature, and flags that name it
# without any effect on the run.
UNSUPPORTED = {
    "model.converters": (
        ["--model.converters=float8"],
        ["--quantize.linear.float8.filter_fqns=output", "--model.converters="],
    ),
    "parallelism.expert_parallel_degree": (
        ["--parallelism.expert_parallel_degree=2"],
        [
            "--parallelism.expert_tensor_parallel_degree=2",
            "--parallelism.expert_parallel_comm_backend=deepep",
        ],
    ),
    "memory_estimation.enable": (
        ["--memory_estimation.enable"],
        ["--memory_estimation.disable_fake_mode"],
    ),
    "fault_tolerance.enable": (
        ["--fault_tolerance.enable"],
        ["--fault_tolerance.group_size=4", "--fault_tolerance.replica_id=1"],
    ),
}


def test_every_row_of_the_table_names_a_field_once_and_is_tested():
    fields = [row.field for row in NOT_SUPPORTED_YET]
    assert set(fields) == set(UNSUPPORTED)
    assert len(fields) == len(set(fields))
    assert set(fields) <= set(schema_of(JobConfig).fields)


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_a_value_that_would_change_the_run_is_refused_by_name(field):
    needed, without_effect = UNSUPPORTED[field]
    found = [str(p) for p in unsupported(load_config(needed)) if p.field == field]
    assert len(found) == 1
    assert found[0].startswith(f"flag --{field}: {field}: not supported yet: ")
    assert unsupported(load_config(without_effect)) == []


def test_the_defaults_and_the_packaged_config_are_supported():
    assert unsupported(load_config([])) == []
    assert run_problems(JobConfig(comm=load_config([]).config.comm), world_size=1)
    loaded = load_config(["--activation_checkpoint.mode=selective"])
    assert unsupported(loaded) == []


RULES = [
    (["--training.dataloader.persistent_workers"], "dataloader.persistent_workers"),
    (["--validation.dataloader.prefetch_factor=2"], "dataloader.prefetch_factor"),
    (
        ["--profiling.enable_profiling", "--profiling.profile_freq=3"],
        "profiler_warmup + profiler_active = 4, found 3",
    ),
    (
        [
            "--checkpoint.enable",
            "--checkpoint.no-last_save_model_only",
            "--checkpoint.last_save_in_hf",
        ],
        "checkpoint.last_save_in_hf",
    ),
    (
        [
            "--checkpoint.enable",
            "--checkpoint.initial_load_in_hf",
            "--checkpoint.no-initial_load_model_only",
        ],
        "checkpoint.initial_load_in_hf: Hugging Face files hold only the weights",
    ),
    (
        ["--checkpoint.enable", "--checkpoint.initial_load_in_hf_quantized"],
        "expected only together with initial_load_in_hf",
    ),
    (["--checkpoint.create_seed_checkpoint"], "only with checkpoint.enable"),
    (
        [
            "--checkpoint.create_seed_checkpoint",
            "--checkpoint.enable",
            "--checkpoint.load_only",
        ],
        "contradicts checkpoint.load_only",
    ),
    (
        [
            "--checkpoint.create_seed_checkpoint",
            "--checkpoint.enable",
            "--checkpoint.load_step=3",
        ],
        "contradicts loading",
    ),
    (
        ["--training.dtype=float64", "--training.mixed_precision_param=bfloat16"],
        "training.dtype = 'float64' would be narrowed to 'bfloat16'",
    ),
    (
        [
            "--parallelism.expert_parallel_degree=4",
            "--parallelism.tensor_parallel_degree=4",
            "--parallelism.expert_tensor_parallel_degree=2",
        ],
        "expected 1 or tensor_parallel_degree = 4, found 2",
    ),
    (
        ["--training.seq_len=256", "--parallelism.context_parallel_degree=3"],
        "expected a multiple of 6",
    ),
    (
        [
            "--validation.enable",
            "--validation.seq_len=30",
            "--parallelism.tensor_parallel_degree=4",
        ],
        "context_parallel_degree), such as 28 or 32, found 30",
    ),
    (
        [
            "--parallelism.pipeline_parallel_degree=2",
            "--parallelism.pipeline_parallel_microbatch_size=3",
        ],
        "expected a divisor of training.local_batch_size = 8 (1, 2, 4, 8), found 3",
    ),
]


@pytest.mark.parametrize(("flags", "message"), RULES)
def test_contradictions_are_found_before_the_number_of_ranks_is_known(flags, message):
    (problem,) = contradictions(load_config(flags))
    assert message in str(problem)
    assert str(problem).startswith("flag --")


def test_a_contradiction_vanishes_without_its_last_flag():
    for flags, _ in RULES:
        assert contradictions(load_config(flags[:-1])) == []
    assert contradictions(load_config(["--training.seq_len=255"])) == []
    assert contradictions(load_config(["--training.dtype=float64"])) == []


RUNS = [
    (["--parallelism.data_parallel_shard_degree=3"], 4, "found dp_shard 3 x "),
    (
        ["--parallelism.data_parallel_shard_degree=3"],
        4,
        "x cp 1 x tp 1 x pp 1 = 3; dp_shard 4 fits the others",
    ),
    (["--parallelism.data_parallel_replicate_degree=3"], 4, "to divide the 4 ranks"),
    (
        ["--parallelism.data_parallel_replicate_degree=3"],
        4,
        "their product may be 1, 2, 4",
    ),
    (["--parallelism.data_parallel_replicate_degree=8"], 4, "to divide the 4 ranks"),
    (["--training.global_batch_size=12"], 1, "8 x 1 data ranks = 8, found 12"),
    (["--training.global_batch_size=24"], 2, "8 x 2 data ranks = 16, found 24"),
    (["--training.global_batch_size=8"], 2, "data ranks = 16, found 8"),
    (
        ["--checkpoint.create_seed_checkpoint", "--checkpoint.enable"],
        2,
        "expected one rank, found 2",
    ),
    (["--profiling.enable_memory_snapshot"], 1, "snapshots exist on CUDA only"),
]


@pytest.mark.parametrize(("flags", "world_size", "message"), RUNS)
def test_values_that_do_not_fit_the_machines_are_refused(flags, world_size, message):
    loaded = load_config([*flags, "--comm.mode=fake_backend"])
    (problem,) = run_problems(loaded, world_size=world_size)
    assert message in str(problem)
    assert str(problem).startswith("flag --")


def test_values_that_fit_the_machines_are_run():
    flags = ["--comm.mode=fake_backend", "--training.global_batch_size=48"]
    loaded = load_config([*flags, "--parallelism.data_parallel_replicate_degree=3"])
    assert check_run(loaded, world_size=6) is loaded.config
    snapshot = load_config(
        ["--profiling.enable_memory_snapshot", "--comm.mode=fake_backend"]
    )
    assert run_problems(snapshot, world_size=1, device="cuda") == []


def test_offload_is_refused_where_it_would_change_the_run():
    offload = load_config(["--training.enable_cpu_offload", "--comm.mode=fake_backend"])
    assert run_problems(offload, world_size=1, device="cpu") == []
    (problem,) = run_problems(offload, world_size=1, device="cuda")
    assert "training.enable_cpu_offload: not supported yet" in str(problem)


def test_ranks_are_threads_on_the_cpu_only_and_share_one_wandb_run():
    inputs = ["--comm.mode=local_tensor", "--metrics.save_for_all_ranks"]
    threads = load_config(inputs)
    assert run_problems(threads, world_size=2) == []
    (problem,) = run_problems(threads, world_size=2, device="cuda")
    assert "comm.mode: expected a run on the CPU" in str(problem)
    assert "backwards of all threads share one thread" in str(problem)
    wandb = load_config([*inputs, "--metrics.enable_wandb"])
    assert run_problems(wandb, world_size=1) == []
    (problem,) = run_problems(wandb, world_size=2)
    assert "metrics.save_for_all_ranks: a process has one W&B run" in str(problem)


def test_the_data_parallel_degree_counts_replicas_and_shards():
    config = load_config(["--parallelism.data_parallel_replicate_degree=2"]).config
    assert data_parallel_degree(config.parallelism, 8) == 8
    assert data_parallel_degree(config.parallelism, 7) is None
    config = load_config(["--parallelism.context_parallel_degree=2"]).config
    assert data_parallel_degree(config.parallelism, 8) == 4


def test_values_problems_and_unsupported_features_are_reported_together():
    loaded = read_config(
        [
            "--training.steps=0",
            "--fault_tolerance.enable",
            "--training.global_batch_size=9",
        ]
        + ["--comm.mode=fake_backend"]
    )
    with pytest.raises(ConfigError) as caught:
        check_run(loaded, world_size=1)
    assert [problem.field for problem in caught.value.problems] == [
        "training.steps",
        "training.global_batch_size",
        "fault_tolerance.enable",
    ]


def test_names_that_only_the_caller_knows_are_checked_with_the_nearest_one():
    loaded = load_config(["--model.name=lama3", "--comm.mode=fake_backend"])
    known = {"model.name": ["llama3"], "optimizer.name": ["Adam", "AdamW"]}
    (problem,) = run_problems(loaded, world_size=1, known=known)
    assert "expected one of llama3; found 'lama3'" in str(problem)
    assert problem.hint == "did you mean 'llama3'?"
    loaded = load_config(["--training.dataset=C4", "--comm.mode=fake_backend"])
    assert run_problems(loaded, world_size=1, known={"training.dataset": ["c4"]}) == []
    loaded = load_config(["--optimizer.name=adamw", "--comm.mode=fake_backend"])
    (problem,) = run_problems(
        loaded, world_size=1, known=known | {"model.name": ["llama3"]}
    )
    assert problem.hint == "did you mean 'AdamW'?"


def test_local_data_needs_a_path_and_parts_of_a_checkpoint_have_names():
    flags = ["--training.dataset=local", "--checkpoint.exclude_from_loading=optimiser"]
    loaded = load_config([*flags, "--checkpoint.enable"])
    parts, path = run_problems(loaded, world_size=1)
    assert "flag --checkpoint.exclude_from_loading: " in str(parts)
    assert "found 'optimiser'; did you mean 'optimizer'?" in str(parts)
    assert path.field == "training.dataset_path"
    assert path.message == "expected a file, folder or glob for dataset 'local'"
    assert len(run_problems(load_config(flags), world_size=1)) == 1


def test_of_a_file_that_does_not_parse_only_that_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text("[training]\nsteps = 1\nsteps = 2\n")
    loaded = read_config(["--job.config_file", "run.toml", "--optimizer.lr", "nan"])
    first, second = run_problems(loaded, world_size=1)
    assert str(first).startswith("run.toml:3:9: ")
    assert "optimizer.lr" in str(second)


def test_missing_test_files_of_torchtitan_are_one_error_with_the_flags_for_ours(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(
        "[model]\nhf_assets_path = './tests/assets/tokenizer'\n"
        "[training]\ndataset = 'c4_test'\n"
    )
    loaded = load_config(["--job.config_file", "run.toml"])
    with pytest.raises(ConfigError) as caught:
        check_run(loaded, world_size=1)
    text = str(caught.value)
    assert "run.toml:2:18: model.hf_assets_path: no such folder" in text
    assert "run.toml:4:11: training.dataset: no such folder" in text
    assert "--training.dataset python_stdlib" in text
    assert "--model.hf_assets_path package:torchtitan_cpp/assets/tokenizer" in text

    (tmp_path / "tests/assets/tokenizer").mkdir(parents=True)
    (tmp_path / "tests/assets/c4_test").mkdir()
    assert check_run(loaded, world_size=1).training.dataset == "c4_test"


def test_an_old_tokenizer_model_is_refused_with_the_script_that_fetches_another():
    loaded = load_config(["--model.hf_assets_path", "x/tokenizer.model"])
    (problem,) = run_problems(loaded, world_size=1)
    assert "expected a folder with tokenizer.json" in str(problem)
    assert "scripts/download_hf_assets.py" in problem.hint


def test_a_config_made_in_python_is_checked_and_resolved(tmp_path):
    model = Model(hf_assets_path="package:torchtitan_cpp/configs")
    config = JobConfig(model=model, training=Training(dataset="python_stdlib"))
    assert check_run(config, world_size=1).model.hf_assets_path.startswith("/")
    with pytest.raises(ConfigError, match="JobConfig: training.steps: expected an int"):
        check_run(JobConfig(model=model, training=Training(steps=0)), world_size=1)


def test_float32_means_float64_when_training_in_it():
    narrow = Training()
    wide = Training(dtype="float64", mixed_precision_param="float32")
    assert compute_dtype(narrow) == "bfloat16"
    assert (compute_dtype(wide), reduce_dtype(wide)) == ("float64", "float64")
    assert reduce_dtype(narrow) == "float32"
    assert state_dtype("float32", "float64") == "float64"
    assert state_dtype("bfloat16", "float64") == "bfloat16"
    assert state_dtype("float32", "bfloat16") == "float32"


def explained(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torchtitan_cpp.config", *flags],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_prints_values_origins_and_what_is_not_supported_yet():
    shown = explained("--training.steps=3", "--fault_tolerance.enable")
    assert shown.returncode == 0, shown.stderr
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert "steps = 3 # flag --training.steps" in lines
    assert any(
        line.startswith('dataset = "python_stdlib" # ') and "debug_model.toml:" in line
        for line in lines
    )
    assert "total_steps = None # default" in lines
    assert any("fault_tolerance.enable: not supported yet" in line for line in lines)


def test_the_command_fails_for_a_wrong_value_and_still_shows_the_rest():
    shown = explained("--training.steps=zero")
    assert shown.returncode == 1
    assert "expected an integer >= 1, found 'zero'" in shown.stdout
    assert "[optimizer]" in shown.stdout


def test_fields_that_wait_for_a_feature_name_a_row_of_the_table():
    rows = {row.field for row in NOT_SUPPORTED_YET}
    names = list(schema_of(JobConfig).fields)
    for pattern, row in WITHOUT_EFFECT_UNLESS.items():
        assert row in rows, pattern
        assert fnmatch.filter(names, pattern), pattern
