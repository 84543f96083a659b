import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "download_hf_assets.py"
FILES = [
    "README.md",
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "original/tokenizer.model",
    "text_encoder/model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "TOKENIZER_notes.txt",
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("download_hf_assets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("assets", "expected"),
    [
        (["tokenizer"], [6, 8, 9]),
        (["config"], [1, 2]),
        (["index"], [5]),
        (["safetensors"], [3, 4, 5, 7]),
        (["index", "config"], [1, 2, 5]),
    ],
)
def test_assets_select_files_by_name_in_every_folder(script, assets, expected):
    selected, missing = script.select_files(FILES, assets=assets)
    assert selected == [FILES[number] for number in expected]
    assert missing == []


def test_additional_patterns_ignore_case(script):
    selected, missing = script.select_files(
        FILES, assets=[], additional_patterns=["readme.md", "Tokenizer_n*", "*.bin"]
    )
    assert selected == ["README.md", "TOKENIZER_notes.txt"]
    assert missing == ["*.bin"]


def run(script, *flags):
    calls = []

    def download_file(**options):
        calls.append(options)
        return ""

    arguments = script.parse(["--repo_id", "org/Model-1B", *flags])
    code = script.download(
        arguments,
        list_files=lambda repo_id, token: FILES,
        download_file=download_file,
    )
    return code, calls


def test_files_go_to_a_folder_named_after_the_model(script, capsys):
    code, calls = run(
        script, "--assets", "config", "--local_dir", "here", "--hf_token", "secret"
    )
    assert code == 0
    assert calls == [
        {
            "filename": name,
            "local_dir": "here/Model-1B",
            "repo_id": "org/Model-1B",
            "token": "secret",
        }
        for name in ("config.json", "generation_config.json")
    ]
    assert "downloaded 2 files to here/Model-1B" in capsys.readouterr().out


def test_all_takes_every_file(script):
    code, calls = run(script, "--all")
    assert code == 0
    assert [call["filename"] for call in calls] == FILES
    assert calls[0]["local_dir"] == "assets/hf/Model-1B"


def test_what_is_not_there_is_said(script, capsys):
    code, calls = run(script, "--additional_patterns", "*.bin")
    assert (code, calls) == (1, [])
    out = capsys.readouterr().out
    assert "warning: org/Model-1B has no file for '*.bin'" in out
    assert "README.md" in out


def test_wrong_command_lines_are_refused(script, capsys):
    for argv, message in [
        ([], "--repo_id"),
        (["--repo_id", "a/b"], "expected --assets, --additional_patterns or --all"),
        (["--repo_id", "a/b", "--assets", "weights"], "invalid choice: 'weights'"),
    ]:
        with pytest.raises(SystemExit) as caught:
            script.parse(argv)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    for repo_id in ("model", "a/b/c", "a/", "/b", "a/.."):
        with pytest.raises(ValueError, match="expected organization/model, got"):
            script.model_folder(repo_id, "here")
