"""The llama3 configurations: ours, and those of torchtitan v0.2.2 by their values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchtitan_cpp.config import load_config, unsupported
from torchtitan_cpp.config.check import contradictions
from torchtitan_cpp.config.load import DEFAULT_FILE

OURS = DEFAULT_FILE.parent

_SHARED = {
    "job": {"dump_folder": "./outputs"},
    "profiling": {
        "enable_profiling": True,
        "save_traces_folder": "profile_trace",
        "profile_freq": 100,
    },
    "metrics": {"log_freq": 10, "enable_tensorboard": True, "save_tb_folder": "tb"},
    "model": {"name": "llama3"},
    "optimizer": {"name": "AdamW", "eps": 1e-8},
    "training": {"seq_len": 8192, "max_norm": 1.0, "dataset": "c4"},
    "parallelism": {
        "data_parallel_replicate_degree": 1,
        "data_parallel_shard_degree": -1,
        "tensor_parallel_degree": 1,
        "pipeline_parallel_degree": 1,
        "context_parallel_degree": 1,
    },
    "checkpoint": {
        "enable": False,
        "folder": "checkpoint",
        "interval": 500,
        "last_save_model_only": True,
        "export_dtype": "float32",
        "async_mode": "disabled",
    },
    "compile": {"enable": False, "components": ["model", "loss"]},
    "quantize.linear.float8": {
        "enable_fsdp_float8_all_gather": False,
        "precompute_float8_dynamic_scale_for_fsdp": False,
        "filter_fqns": ["output"],
    },
    "validation": {
        "enable": False,
        "dataset": "c4_validation",
        "freq": 500,
        "steps": 1200,
    },
}

# What each of v0.2.2's files says beyond, or instead of, the values above.
_OF_EACH = {
    "debug_model": {
        "job": {"print_config": False},
        "profiling": {
            "enable_profiling": False,
            "profile_freq": 10,
            "enable_memory_snapshot": False,
            "save_memory_snapshot_folder": "memory_snapshot",
        },
        "metrics": {
            "log_freq": 1,
            "enable_tensorboard": False,
            "disable_color_printing": False,
            "enable_wandb": False,
        },
        "model": {
            "flavor": "debugmodel",
            "hf_assets_path": "./tests/assets/tokenizer",
        },
        "optimizer": {"lr": 8e-4},
        "lr_scheduler": {
            "warmup_steps": 2,
            "decay_ratio": 0.8,
            "decay_type": "linear",
            "min_lr_factor": 0.0,
        },
        "training": {
            "local_batch_size": 8,
            "seq_len": 2048,
            "steps": 10,
            "dataset": "c4_test",
        },
        "parallelism": {
            "fsdp_reshard_after_forward": "default",
            "enable_async_tensor_parallel": False,
            "pipeline_parallel_schedule": "Interleaved1F1B",
        },
        "checkpoint": {"interval": 10, "last_save_model_only": False},
        "activation_checkpoint": {"mode": "selective", "selective_ac_option": "2"},
        "validation": {"freq": 5, "steps": 10},
    },
    "llama3_8b": {
        "model": {"flavor": "8B", "hf_assets_path": "./assets/hf/Llama-3.1-8B"},
        "optimizer": {"lr": 3e-4},
        "lr_scheduler": {"warmup_steps": 200},
        "training": {"local_batch_size": 1, "steps": 1000},
        "activation_checkpoint": {"mode": "selective", "selective_ac_option": "op"},
    },
    "llama3_70b": {
        "model": {"flavor": "70B", "hf_assets_path": "./assets/hf/Llama-3.1-70B"},
        "optimizer": {"lr": 1.5e-4},
        "lr_scheduler": {"warmup_steps": 200},
        "training": {"local_batch_size": 8, "steps": 1000},
        "parallelism": {"tensor_parallel_degree": 8},
        "activation_checkpoint": {"mode": "full"},
    },
    "llama3_405b": {
        "model": {
            "flavor": "405B",
            "hf_assets_path": "./assets/hf/Llama-3.1-405B",
            "converters": ["float8"],
        },
        "optimizer": {"lr": 8e-5},
        "lr_scheduler": {"warmup_steps": 600},
        "training": {"local_batch_size": 2, "steps": 3000},
        "parallelism": {
            "tensor_parallel_degree": 8,
            "enable_async_tensor_parallel": True,
        },
        "activation_checkpoint": {"mode": "full"},
        "compile": {"enable": True},
        "quantize.linear.float8": {
            "enable_fsdp_float8_all_gather": True,
            "precompute_float8_dynamic_scale_for_fsdp": True,
        },
    },
}

NOT_SUPPORTED = {
    "debug_model": [],
    "llama3_1b": [],
    "llama3_8b": [],
    "llama3_70b": [],
    "llama3_405b": [
        "model.converters",
    ],
}


def values_of(name: str) -> dict[str, dict[str, object]]:
    sections = {**_SHARED, **{section: {} for section in _OF_EACH[name]}}
    return {
        section: {**_SHARED.get(section, {}), **_OF_EACH[name].get(section, {})}
        for section in sections
    }


def write_toml(path: Path, sections: dict[str, dict[str, object]]) -> None:
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("name", _OF_EACH)
def test_the_values_of_torchtitans_file_are_taken_as_they_are(name, tmp_path):
    path = tmp_path / f"{name}.toml"
    write_toml(path, values_of(name))
    loaded = load_config(["--job.config_file", str(path)])
    for section, values in values_of(name).items():
        for key, value in values.items():
            if key == "converters":
                value = ["quantize.linear.float8"]
            assert loaded.value(f"{section}.{key}") == value
            assert str(path) in str(loaded.origin(f"{section}.{key}"))
    assert contradictions(loaded) == []
    assert [problem.field for problem in unsupported(loaded)] == NOT_SUPPORTED[name]


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_our_own_files_are_valid(name):
    loaded = load_config(["--job.config_file", str(OURS / f"{name}.toml")])
    assert contradictions(loaded) == []
    assert [problem.field for problem in unsupported(loaded)] == NOT_SUPPORTED[name]
    assert loaded.notes == ()


@pytest.mark.parametrize("name", ["llama3_8b", "llama3_70b", "llama3_405b"])
def test_our_own_files_mean_the_same_as_torchtitans(name, tmp_path):
    path = tmp_path / "theirs.toml"
    write_toml(path, values_of(name))
    theirs = load_config(["--job.config_file", str(path)]).config.to_dict()
    ours = load_config(
        ["--job.config_file", str(OURS / f"{name}.toml")]
    ).config.to_dict()
    for config in (theirs, ours):
        config["job"].pop("config_file")
        config["job"].pop("description")
    assert ours == theirs
