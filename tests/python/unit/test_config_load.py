"""Files, flags, their precedence and origins, extensions, and clear refusals."""

from __future__ import annotations

import json
import textwrap

import pytest

from torchtitan_cpp.config import (
    ConfigError,
    ConfigManager,
    JobConfig,
    check_run,
    config_from_dict,
    config_json,
    load_config,
    read_config,
    save_config,
)
from torchtitan_cpp.config.package_path import resolve_package_path


@pytest.fixture
def toml(tmp_path):
    """Writes a TOML file and returns the flags that name it."""

    def write(text: str) -> list[str]:
        path = tmp_path / "run.toml"
        path.write_text(textwrap.dedent(text))
        return ["--job.config_file", str(path)]

    return write


def problems(argv: list[str]) -> list[str]:
    return [str(problem) for problem in read_config(argv).problems]


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(toml):
    flags = toml(
        """\
        [training]
        steps = 20
        seq_len = 64
        """
    )
    path = flags[1]
    loaded = load_config([*flags, "--training.steps", "30"])
    training = loaded.config.training
    assert (training.steps, training.seq_len, training.local_batch_size) == (30, 64, 8)
    assert str(loaded.origin("training.steps")) == "flag --training.steps"
    assert str(loaded.origin("training.seq_len")) == f"{path}:3:11"
    assert str(loaded.origin("training.local_batch_size")) == "default"


def test_without_a_file_the_packaged_debug_config_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_config([])
    assert loaded.config.training.dataset == "python_stdlib"
    assert loaded.config.training.mixed_precision_param == "float32"
    assert loaded.config.model.hf_assets_path.endswith(
        "torchtitan_cpp/assets/tokenizer"
    )
    origin = str(loaded.origin("training.dataset"))
    assert "torchtitan_cpp/configs/llama3/debug_model.toml:" in origin


def test_a_file_replaces_the_packaged_one_and_does_not_add_to_it(toml):
    config = load_config(toml("")).config
    assert config.training == JobConfig().training


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--training.steps", "7"], "training.steps", 7),
        (["--training.steps=7"], "training.steps", 7),
        (["--training.local-batch-size=7"], "training.local_batch_size", 7),
        (["--lr-scheduler.warmup_steps", "7"], "lr_scheduler.warmup_steps", 7),
        (["--checkpoint.load_step", "-1"], "checkpoint.load_step", -1),
        (["--checkpoint.enable"], "checkpoint.enable", True),
        (["--checkpoint.enable=true"], "checkpoint.enable", True),
        (["--checkpoint.enable=False"], "checkpoint.enable", False),
        (["--checkpoint.enable", "false"], "checkpoint.enable", False),
        (
            ["--checkpoint.no-initial-load-model-only"],
            "checkpoint.initial_load_model_only",
            False,
        ),
        (
            ["--checkpoint.no_last_save_model_only"],
            "checkpoint.last_save_model_only",
            False,
        ),
        (
            ["--training.dataloader.num_workers", "4"],
            "training.dataloader.num_workers",
            4,
        ),
        (["--optimizer.lr", "3e-4"], "optimizer.lr", 3e-4),
        (["--optimizer.lr", "1"], "optimizer.lr", 1.0),
        (["--debug.seed", "None"], "debug.seed", None),
        (["--debug.seed", "42"], "debug.seed", 42),
        (["--job.description", "a = b, c"], "job.description", "a = b, c"),
        (["--job.description=a=b"], "job.description", "a=b"),
        (["--job.description="], "job.description", ""),
        (
            ["--compile.components", "model,loss"],
            "compile.components",
            ["model", "loss"],
        ),
        (["--compile.components", ""], "compile.components", []),
        (["--compile.components="], "compile.components", []),
        (
            ["--quantize.grouped_mm.mx.fqns", "a,b"],
            "quantize.grouped_mm.mx.fqns",
            ["a", "b"],
        ),
        (
            ["--parallelism.module_fqns_per_model_part", '[["a"], ["b", "c"]]'],
            "parallelism.module_fqns_per_model_part",
            [["a"], ["b", "c"]],
        ),
        (
            ["--training.steps", "7", "--training.steps=8"],
            "training.steps",
            8,
        ),
        (
            ["--parallelism.context-parallel-load-balancer", "None"],
            "parallelism.context_parallel_load_balancer",
            None,
        ),
    ],
)
def test_a_flag_may_be_written_in_each_of_these_ways(argv, name, value):
    loaded = load_config(argv)
    assert loaded.value(name) == value
    assert type(loaded.value(name)) is type(value)
    assert loaded.origin(name).kind == "flag"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--training.stps", "3"], "unknown flag; did you mean 'training.steps'?"),
        (["--training.lr", "3"], "unknown flag; did you mean 'optimizer.lr'?"),
        (["--optimiser.lr", "3"], "unknown flag; did you mean 'optimizer.lr'?"),
        (["--quite_unlike_anything", "3"], "unknown flag"),
        (["--training", "3"], "expected a field of this section; it has dataloader, "),
        (["--training.steps"], "expected a value after the flag"),
        (["--training.steps", "--debug.seed=1"], "expected a value after the flag"),
        (["--training.steps", "1e3"], "expected an integer >= 1, found '1e3'"),
        (["--checkpoint.enable=1"], "expected true or false, found '1'"),
        (["--checkpoint.no_enable=true"], "no value after a flag that says no"),
        (["--training.no_steps"], "unknown flag"),
        (["training.steps=3"], "expected a flag that begins with --"),
        (["--checkpoint.enable", "maybe"], "expected a flag that begins with --"),
        (["-s"], "expected a flag that begins with --"),
        (
            ["--optimizer.implementation", "fusd"],
            "expected one of 'for-loop', 'foreach', 'fused', found 'fusd'; "
            "did you mean 'fused'?",
        ),
        (
            ["--fault_tolerance.semi_sync_method", "dilco"],
            "expected one of 'local_sgd', 'diloco' or None, found 'dilco'; "
            "did you mean 'diloco'?",
        ),
        (["--compile.components", "a,,b"], "comma-separated, found 'a,,b'"),
        (["--optimizer.lr", "nan"], "expected a number >= 0, finite, found nan"),
        (["--training.steps", "99999999999999999999"], "of 64 bits"),
    ],
)
def test_a_wrong_flag_is_named_with_what_was_meant(argv, message):
    (problem, *_) = problems(argv)
    assert problem.startswith("flag ")
    assert message in problem


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (
            "[training]\nstepz = 3",
            "2:1",
            "unknown field; did you mean 'training.steps'?",
        ),
        ("[training]\nlr = 3", "2:1", "unknown field; did you mean 'optimizer.lr'?"),
        ("[trainig]\nx = 3", "1:2", "unknown section; did you mean 'training'?"),
        ("training = 3", "1:12", "expected a table, found 3"),
        ("[training]\nsteps = {a = 1}", "2:9", "found a table"),
        (
            "[training]\n[[model]]\nname = 'x'",
            "2:1",
            "expected a table, found the list",
        ),
        ("[training]\nsteps = 1\nsteps = 2", "3:", "steps"),
        ("[model]\n[training]\n[model]", "3:", "model"),
        ("[training]\nsteps = ", "2:", ""),
        ("[training]\nsteps = 1979-05-27", "2:9", "found 1979-05-27"),
        (
            "[parallelism]\nmodule_fqns_per_model_part = [['a'], 'b']",
            "2:30",
            "item 1 is 'b'",
        ),
        ("[job]\nconfig_file = 'x.toml'", "2:15", "only as the flag --job.config_file"),
        (
            "[training.dataloader]\nnum_worker = 1",
            "2:1",
            "'training.dataloader.num_workers'",
        ),
    ],
)
def test_a_mistake_in_a_file_is_named_with_line_and_column(toml, text, place, message):
    flags = toml(text)
    found = problems(flags)
    assert len(found) == 1
    assert found[0].startswith(f"{flags[1]}:{place}")
    assert message in found[0]


def test_all_problems_are_reported_at_once_in_the_order_of_file_and_flags(toml):
    flags = toml(
        """\
        [training]
        steps = "many"
        sequence = 3
        [optimizer]
        lr = nan
        """
    )
    with pytest.raises(ValueError) as caught:
        load_config([*flags, "--metrics.log_freq=0", "--nothing"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 problems in the configuration:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [
        f"{flags[1]}:2:9",
        f"{flags[1]}:3:1",
        f"{flags[1]}:5:6",
        "flag --metrics.log_freq",
        "flag --nothing",
    ]


def test_a_file_that_is_missing_is_one_problem_with_the_nearest_one(toml, tmp_path):
    toml("")
    (found,) = problems(["--job.config-file", str(tmp_path / "rum.toml")])
    assert "No such file or directory" in found
    assert f"did you mean '{tmp_path / 'run.toml'}'?" in found
    (found,) = problems([f"--job.config_file={tmp_path}"])
    assert "Is a directory" in found


def test_help_shows_every_field_with_its_documentation(capsys):
    with pytest.raises(SystemExit) as caught:
        read_config(["--training.steps", "3", "--help"])
    assert caught.value.code == 0
    page = capsys.readouterr().out
    assert "--training.seq_len  (an integer >= 1; default 2048)" in page
    assert "Tokens of one sequence." in page
    assert "--quantize.linear.float8.filter_fqns" in page
    assert all(len(line) < 200 for line in page.splitlines())


def test_the_effective_config_loads_again_as_the_same(tmp_path):
    loaded = load_config(
        ["--training.max_norm=inf", "--model.converters=float8"]
        + ["--job.save_config_file=sub/config.json", f"--job.dump_folder={tmp_path}"]
    )
    assert config_from_dict(json.loads(config_json(loaded.config))) == loaded.config
    path = save_config(loaded.config)
    assert path == tmp_path / "sub" / "config.json"
    assert config_from_dict(json.loads(path.read_text())) == loaded.config
    assert save_config(JobConfig()) is None


def test_a_dict_with_a_wrong_value_is_refused():
    with pytest.raises(ConfigError, match="training.steps: expected an integer >= 1"):
        config_from_dict({"training": {"steps": 0}})
    with pytest.raises(ConfigError, match="did you mean 'training.steps'"):
        config_from_dict({"training": {"step": 1}})


def test_float8_among_converters_means_the_linear_one():
    loaded = load_config(["--model.converters", "float8,quantize.grouped_mm.float8"])
    assert loaded.config.model.converters == [
        "quantize.linear.float8",
        "quantize.grouped_mm.float8",
    ]
    assert "'float8' means 'quantize.linear.float8'" in loaded.notes[0]
    (found,) = problems(["--model.converters", "quantize.linear.float"])
    assert "did you mean 'quantize.linear.float8'?" in found


def test_an_unknown_converter_is_told_once():
    with pytest.raises(ConfigError) as caught:
        check_run(read_config(["--model.converters=float16"]), world_size=1)
    (problem,) = caught.value.problems
    assert "expected names among" in str(problem)


def test_tokenizer_path_still_gives_hf_assets_path(toml, tmp_path):
    flags = toml(f"[model]\ntokenizer_path = '{tmp_path}'")
    loaded = load_config(flags)
    assert loaded.config.model.hf_assets_path == str(tmp_path)
    assert "model.tokenizer_path is deprecated" in loaded.notes[0]
    newer = load_config([*flags, "--model.hf_assets_path", "/elsewhere"])
    assert newer.config.model.hf_assets_path == "/elsewhere"
    (found,) = problems(
        ["--model.tokenizer_path", "/a", "--model.hf_assets_path", "/b"]
    )
    assert "contradicts model.hf_assets_path = '/b'" in found


def test_paths_inside_a_package_are_resolved():
    path = resolve_package_path(
        "package:torchtitan_cpp/configs/llama3/debug_model.toml"
    )
    assert path.startswith("/")
    assert (
        load_config(["--job.config_file", path]).config
        == (
            load_config(
                [
                    "--job.config_file",
                    "package:torchtitan_cpp/configs/llama3/debug_model.toml",
                ]
            )
        ).config
    )
    assert resolve_package_path("./relative") == "./relative"
    (found,) = problems(["--model.hf_assets_path", "package:no_such_package/x"])
    assert "no package named 'no_such_package' is installed" in found


def test_config_manager_returns_the_config_as_in_torchtitan():
    assert ConfigManager().parse_args(["--training.steps=3"]).training.steps == 3
