"""Every field: documented, of the right type, in range, and refused otherwise."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

import pytest

from torchtitan_cpp.config import ConfigError, JobConfig, load_config
from torchtitan_cpp.config.constraints import Constraint
from torchtitan_cpp.config.load import from_python
from torchtitan_cpp.config.schema import documentation, schema_of
from torchtitan_cpp.config.values import expected

SCHEMA = schema_of(JobConfig)
DOCS = documentation(SCHEMA)

# A TOML value of a wrong type for each kind of field.
WRONG_TYPES = {
    "true or false": ['"yes"', "1"],
    "an integer": ["1.5", "true", '"3"'],
    "a number": ['"fast"', "false", "[1.0]"],
    "one of": ['"nonsense"', "3"],
    "a list": ["3", "{}", "[1]"],
    "a text": ["7", "[]", "2020-02-29"],
    "a positive number": ["2"],
}

# Values of the right type but out of range, for every field that has a range.
OUT_OF_RANGE = {
    "job.dump_folder": ['""'],
    "debug.seed": ["-1"],
    "metrics.log_freq": ["0"],
    "metrics.save_tb_folder": ['""'],
    "profiling.save_traces_folder": ['""'],
    "profiling.profile_freq": ["0"],
    "profiling.profiler_active": ["0"],
    "profiling.profiler_warmup": ["-1"],
    "profiling.save_memory_snapshot_folder": ['""'],
    "profiling.save_timeline_folder": ['""'],
    "model.name": ['""'],
    "model.flavor": ['""'],
    "optimizer.name": ['""'],
    "optimizer.lr": ["-0.1", "nan", "inf"],
    "optimizer.beta1": ["1.0", "-0.1", "nan"],
    "optimizer.beta2": ["1", "-1", "nan"],
    "optimizer.eps": ["-1e-9", "nan", "inf"],
    "optimizer.weight_decay": ["-0.1", "nan"],
    "lr_scheduler.warmup_steps": ["-1"],
    "lr_scheduler.total_steps": ["0"],
    "lr_scheduler.decay_ratio": ["1.1", "-0.1", "nan"],
    "lr_scheduler.min_lr_factor": ["2.0", "nan"],
    "training.dataset": ['""'],
    "training.local_batch_size": ["0"],
    "training.global_batch_size": ["0", "-2"],
    "training.seq_len": ["0", "9223372036854775808"],
    "training.max_norm": ["0.0", "-1", "nan"],
    "training.steps": ["0"],
    "training.gc_freq": ["0"],
    "training.dataloader.num_workers": ["-1"],
    "training.dataloader.prefetch_factor": ["0"],
    "parallelism.data_parallel_replicate_degree": ["0", "-1"],
    "parallelism.data_parallel_shard_degree": ["0", "-2"],
    "parallelism.tensor_parallel_degree": ["0"],
    "parallelism.pipeline_parallel_degree": ["0"],
    "parallelism.pipeline_parallel_first_stage_less_layers": ["-1"],
    "parallelism.pipeline_parallel_last_stage_less_layers": ["-1"],
    "parallelism.pipeline_parallel_layers_per_stage": ["0"],
    "parallelism.pipeline_parallel_schedule": ['""'],
    "parallelism.pipeline_parallel_microbatch_size": ["0"],
    "parallelism.context_parallel_degree": ["0"],
    "parallelism.context_parallel_load_balancer": ['""', '"tail"'],
    "parallelism.expert_parallel_degree": ["0"],
    "parallelism.expert_tensor_parallel_degree": ["0"],
    "checkpoint.folder": ['""'],
    "checkpoint.interval": ["0"],
    "checkpoint.keep_latest_k": ["-1"],
    "checkpoint.max_failed_saves": ["-1"],
    "checkpoint.load_step": ["-2"],
    "activation_checkpoint.selective_ac_option": ['"0"', '"-1"', '"ops"', '""'],
    "activation_checkpoint.memory_budget": ["1.5", "-0.5", "nan"],
    "activation_checkpoint.determinism_check": ['"maybe"'],
    "compile.components": ['["optimizer"]'],
    "compile.backend": ['""'],
    "quantize.linear.mx.recipe_name": ['""'],
    "comm.init_timeout_seconds": ["0"],
    "comm.train_timeout_seconds": ["0"],
    "comm.trace_buf_size": ["-1"],
    "debug.replica_check_interval": ["-1"],
    "comm.save_traces_folder": ['""'],
    "fault_tolerance.process_group": ['"mpi"'],
    "fault_tolerance.process_group_timeout_ms": ["0"],
    "fault_tolerance.replica_id": ["-1"],
    "fault_tolerance.group_size": ["-1"],
    "fault_tolerance.min_replica_size": ["0"],
    "fault_tolerance.semi_sync_method": ['"sgd"'],
    "validation.dataset": ['""'],
    "validation.local_batch_size": ["0"],
    "validation.seq_len": ["0"],
    "validation.freq": ["0"],
    "validation.steps": ["0", "-2"],
    "validation.dataloader.num_workers": ["-1"],
    "validation.dataloader.prefetch_factor": ["0"],
}


def has_range(kind: object) -> bool:
    if typing.get_origin(kind) is typing.Annotated:
        return any(isinstance(entry, Constraint) for entry in typing.get_args(kind)[1:])
    return any(has_range(arm) for arm in typing.get_args(kind))


def refused(tmp_path, name: str, value: str) -> str:
    """The message about field ``name`` with this TOML value, checked for its place."""
    section, _, leaf = name.rpartition(".")
    file = tmp_path / "run.toml"
    file.write_text(f"# a comment\n[{section}]\n{leaf} = {value}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(["--job.config_file", str(file)])
    (problem,) = caught.value.problems
    assert str(problem.origin).startswith(f"{file}:3:")
    assert value.startswith("9223") or str(problem.origin).endswith(f":{len(leaf) + 4}")
    return str(problem)


@pytest.mark.parametrize("name", SCHEMA.fields)
def test_every_field_says_in_one_line_what_it_means(name):
    doc = DOCS[name]
    assert 10 < len(doc) <= 85
    assert doc.endswith(".")


@pytest.mark.parametrize("name", [n for n in SCHEMA.fields if n != "job.config_file"])
def test_every_field_refuses_a_wrong_type_and_says_where(name, tmp_path):
    words = expected(SCHEMA.fields[name].kind)
    key = next(start for start in WRONG_TYPES if words.startswith(start))
    for value in WRONG_TYPES[key]:
        if name.endswith(".fqns") and value in ("{}",):
            continue
        message = refused(tmp_path, name, value)
        assert f": {name}: expected " in message
        assert "found " in message


@pytest.mark.parametrize("name", [n for n in SCHEMA.fields if n != "job.config_file"])
def test_every_field_refuses_a_wrong_flag(name):
    words = expected(SCHEMA.fields[name].kind)
    if words.startswith("a text") or words.endswith("or a text"):
        pytest.raises(ConfigError, load_config, [f"--{name}"])
        return
    wrong = ",," if "a list" in words else "nonsense"
    with pytest.raises(ConfigError) as caught:
        load_config([f"--{name}={wrong}"])
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"flag --{name}: {name}: expected ")
    assert repr(wrong) in str(problem)


def test_the_table_of_ranges_is_complete():
    assert {n for n, f in SCHEMA.fields.items() if has_range(f.kind)} == {
        n for n in OUT_OF_RANGE if has_range(SCHEMA.fields[n].kind)
    }
    # Literal fields are covered by their wrong types, floats by NaN alone.
    floats = {n for n, f in SCHEMA.fields.items() if "float" in str(f.kind)}
    for name in floats & set(OUT_OF_RANGE):
        if isinstance(SCHEMA.fields[name].default, float):
            assert "nan" in OUT_OF_RANGE[name], name


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_with_its_place(name, tmp_path):
    for value in OUT_OF_RANGE[name]:
        message = refused(tmp_path, name, value)
        if not value.startswith("9223"):  # the parser itself refuses it
            assert f": {name}: expected " in message


def test_ranges_include_their_ends(tmp_path):
    loaded = load_config(
        ["--optimizer.beta1=0", "--optimizer.lr=0", "--training.max_norm=inf"]
        + ["--lr_scheduler.decay_ratio=1", "--checkpoint.keep_latest_k=1"]
        + ["--debug.seed=9223372036854775807", "--training.global_batch_size=-1"]
    )
    assert loaded.config.optimizer.beta1 == 0.0
    assert isinstance(loaded.config.optimizer.lr, float)
    assert loaded.config.training.max_norm == float("inf")
    assert loaded.config.debug.seed == 2**63 - 1


def test_defaults_are_allowed_values_and_sections_are_frozen():
    loaded = from_python(JobConfig())
    assert loaded.problems == ()
    assert loaded.config == JobConfig()
    assert loaded.origins == {}
    for section in SCHEMA.sections.values():
        assert section.__dataclass_params__.frozen, section
    with pytest.raises(dataclasses.FrozenInstanceError):
        JobConfig().training.steps = 3


def test_defaults_are_those_of_torchtitan_where_a_change_would_be_noticed():
    defaults = {name: field.default for name, field in SCHEMA.fields.items()}
    theirs = {
        "model.hf_assets_path": "./tests/assets/tokenizer",
        "optimizer.lr": 8e-4,
        "optimizer.beta2": 0.95,
        "optimizer.implementation": "fused",
        "lr_scheduler.warmup_steps": 200,
        "training.dataset": "c4_test",
        "training.seq_len": 2048,
        "training.steps": 10000,
        "training.mixed_precision_param": "bfloat16",
        "parallelism.data_parallel_shard_degree": -1,
        "activation_checkpoint.mode": "selective",
        "activation_checkpoint.selective_ac_option": "2",
        "activation_checkpoint.preserve_rng_state": True,
        "checkpoint.keep_latest_k": 10,
        "comm.init_timeout_seconds": 300,
        "comm.train_timeout_seconds": 100,
        "validation.steps": -1,
    }
    assert {name: defaults[name] for name in theirs} == theirs
    assert len(defaults) == 149 + 7  # v0.2.2's fields and those of the test below


def test_the_json_of_a_config_is_plain(tmp_path):
    data = json.loads(json.dumps(JobConfig().to_dict()))
    assert data["training"]["dataloader"]["num_workers"] == 0
    assert data["quantize"]["linear"]["mx"]["filter_fqns"] == ["output"]


def test_the_readme_lists_every_field_that_torchtitan_lacks():
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    ours = [name for name, doc in DOCS.items() if "ot v0.2.2's" in doc]
    assert ours == [
        "profiling.enable_timeline",
        "profiling.save_timeline_folder",
        "optimizer.state_dtype",
        "training.dtype",
        "checkpoint.format",
        "checkpoint.max_failed_saves",
        "activation_checkpoint.offload",
        "debug.replica_check_interval",
    ]
    for name in ours:
        assert f"`{name}" in readme
