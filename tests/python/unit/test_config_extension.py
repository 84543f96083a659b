"""Fields and sections that a module of the user adds (job.custom_config_module)."""

from __future__ import annotations

import sys
import textwrap

import pytest

from torchtitan_cpp.config import (
    JobConfig,
    config_from_dict,
    load_config,
    read_config,
)


def problems(argv: list[str]) -> list[str]:
    return [str(problem) for problem in read_config(argv).problems]


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """An importable module of a user with fields and sections of its own."""
    (tmp_path / "my_extension.py").write_text(
        textwrap.dedent(
            '''\
            from __future__ import annotations

            from dataclasses import dataclass, field


            @dataclass
            class Training:
                img_size: int = 256
                """Width of an image in pixels."""
                steps: int = 77
                """Steps, with another default."""


            @dataclass
            class Encoder:
                name: str = "t5"
                layers: list[int] = field(default_factory=lambda: [1, 2])

                def __post_init__(self):
                    if self.name == "bad":
                        raise ValueError("no encoder is called bad")


            @dataclass
            class JobConfig:
                training: Training = field(default_factory=Training)
                encoder: Encoder = field(default_factory=Encoder)
            '''
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_extension"
    sys.modules.pop("my_extension", None)


@pytest.mark.parametrize(
    "flag", ["--job.custom_config_module", "--experimental.custom-args-module"]
)
def test_a_module_of_the_user_adds_fields_and_sections(extension, flag, capsys):
    argv = [flag, extension, "--training.img_size=64", "--encoder.layers", "3,4"]
    loaded = load_config(argv)
    config = loaded.config
    assert isinstance(config, JobConfig)
    assert config.training.img_size == 64
    assert config.encoder.layers == [3, 4]
    assert config.encoder.name == "t5"
    assert config.training.seq_len == 256  # from the packaged file
    assert config.job.custom_config_module == extension
    assert type(config)().training.steps == 77
    assert config_from_dict(config.to_dict(), like=config) == config
    assert JobConfig().training.steps == 10000  # ours stays as it is
    with pytest.raises(SystemExit):
        load_config([flag, extension, "--help"])
    assert "Width of an image in pixels." in capsys.readouterr().out


def test_a_module_named_in_the_file_works_and_the_flag_wins(extension, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        f"[job]\ncustom_config_module = '{extension}'\n[encoder]\nname = 'clip'\n"
    )
    flags = ["--job.config_file", str(file)]
    assert load_config(flags).config.encoder.name == "clip"
    found = problems([*flags, "--job.custom_config_module=no_such_module"])
    assert "cannot import JobConfig from 'no_such_module'" in found[0]
    assert "unknown section" in found[1]


def test_wrong_values_of_added_fields_are_refused_like_ours(extension):
    flags = ["--job.custom_config_module", extension]
    found = problems([*flags, "--training.img_size=x", "--encoder.layers=1,x"])
    assert "training.img_size: expected an integer, found 'x'" in found[0]
    assert "encoder.layers: expected" in found[1]
    (found,) = problems([*flags, "--encoder.name", "bad"])
    assert found == "flag --encoder.name: encoder: no encoder is called bad"
