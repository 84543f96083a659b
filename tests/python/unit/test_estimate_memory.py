"""scripts/estimate_memory.py: the plan's memory, of any mesh, against a device's."""

from __future__ import annotations

import pytest
from script_modules import load_script

from torchtitan_cpp.config import check_run, read_config
from torchtitan_cpp.plan import Plan, make_plan
from torchtitan_cpp.world import build_fake_world

script = load_script("estimate_memory")
FLAGS = ["--training.local_batch_size=2", "--training.seq_len=64"]


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NNODES", "CONFIG_FILE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NGPU", "4")


def planned(*flags: str, rank: int = 0) -> Plan:
    loaded = read_config([*FLAGS, *flags, "--comm.mode=fake_backend"])
    config = check_run(loaded, world_size=4)
    return make_plan(config, build_fake_world(config, rank))


def numbers(text: str, label: str) -> list[float]:
    """Of the lines that begin with the label."""
    lines = [line for line in text.splitlines() if line.strip().startswith(label + " ")]
    return [
        float(word)
        for line in lines
        for word in line.strip().removeprefix(label).replace(",", "").split()
    ]


def test_it_prints_what_the_plan_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([*FLAGS, "--memory_estimation.enable"]) == 0
    text = capsys.readouterr().out
    memory = planned().memory
    mib = 2**20
    assert numbers(text, "total") == [
        round(memory.before.total() / mib, 1),
        round(memory.peak.total() / mib, 1),
    ]
    assert numbers(text, "optimizer")[0] == round(memory.before.optimizer / mib, 1)
    in_segments = [*numbers(text, "head"), *numbers(text, "layers.0")]
    assert len(in_segments) == 4
    assert max(in_segments) <= round(memory.peak.total() / mib, 1)
    assert "fit" not in text  # nobody knows the device


def test_it_compares_the_peak_with_the_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gib = planned().memory.peak.total() / 2**30
    for capacity, verdict in ((gib * 2, "50.0%"), (gib / 2, "200.0%")):
        assert script.main([*FLAGS, f"--capacity_gib={capacity}"]) == 0
        text = capsys.readouterr().out
        assert verdict in text
        assert ("does NOT fit" in text) == (capacity < gib)


def test_each_rank_of_a_pipeline_has_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGPU", "2")
    monkeypatch.setenv("NNODES", "2")
    flags = ["--parallelism.pipeline_parallel_degree=2"]
    assert script.main([*FLAGS, *flags]) == 0
    text = capsys.readouterr().out
    assert text.count("memory of rank") == 2
    peaks = numbers(text, "total")[1::2]
    expected = [planned(*flags, rank=rank).memory.peak.total() for rank in (0, 2)]
    assert peaks == [round(peak / 2**20, 1) for peak in expected]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--capacity_gib=0"], "--capacity_gib: expected more than 0, found 0"),
        (["--memory_estimation.disable_fake_mode"], "nothing is run with real tensors"),
        (["--training.stepz=3"], "did you mean 'training.steps'?"),
        (["--parallelism.tensor_parallel_degree=3"], "tensor_parallel_degree"),
    ],
)
def test_bad_input_is_one_clear_error(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([*FLAGS, *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_bad_number_of_ranks_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGPU", "many")
    assert script.main(FLAGS) == 2
    assert capsys.readouterr().err == (
        "NGPU: expected a number, 1 or more, found 'many'\n"
    )
