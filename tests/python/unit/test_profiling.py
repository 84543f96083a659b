"""Profiler traces: where they lie, that they are JSON, and which settings fail."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchtitan_cpp.logging import logger
from torchtitan_cpp.profiling import (
    check_profiling,
    maybe_enable_memory_snapshot,
    maybe_enable_profiling,
)

CPU = torch.device("cpu")


def section(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "enable_profiling": True,
        "save_traces_folder": "profile_traces",
        "profile_freq": 3,
        "profiler_active": 1,
        "profiler_warmup": 1,
        "enable_memory_snapshot": False,
        "save_memory_snapshot_folder": "memory_snapshot",
    }
    return SimpleNamespace(**(values | changes))


def train(folder: Path, steps: int, config: Any = None, **options: Any) -> list[str]:
    """Multiply matrices for some steps; the traces written, by their path."""
    with maybe_enable_profiling(
        config or section(), base_folder=str(folder), **options
    ) as profiler:
        assert profiler is not None
        for _ in range(steps):
            torch.mm(torch.ones(8, 8), torch.ones(8, 8))
            profiler.step()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json"))


def test_traces_are_json_that_perfetto_opens(tmp_path: Path) -> None:
    traces = train(tmp_path, 7, rank=2, leaf_folder="leaf")
    assert traces == [
        "profile_traces/iteration_3/leaf/rank2_trace.json",
        "profile_traces/iteration_6/leaf/rank2_trace.json",
    ]
    trace = json.loads((tmp_path / traces[0]).read_text())
    multiplications = [
        event for event in trace["traceEvents"] if event.get("name") == "aten::mm"
    ]
    assert len(multiplications) == 1
    assert multiplications[0]["ph"] == "X"
    assert multiplications[0]["args"]["Input Dims"] == [[8, 8], [8, 8]]


def test_tracing_prints_nothing_of_its_own(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from test_profiling import train\n"
        f"assert len(train(Path({str(tmp_path)!r}), 7)) == 2\n"
    )
    environment = {
        key: value for key, value in os.environ.items() if key != "KINETO_LOG_LEVEL"
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_windows_lie_at_the_same_steps_after_a_resume(tmp_path: Path) -> None:
    assert train(tmp_path, 3, global_step=4) == [
        "profile_traces/iteration_6/rank0_trace.json"
    ]


def test_a_run_too_short_for_a_trace_says_so(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger=logger.name):
        assert train(tmp_path, 2, section(profile_freq=10)) == []
    assert caplog.messages == [
        "No profiler trace was written: the run ended at step 2, and a trace is "
        "complete every 10 steps (profiling.profile_freq)"
    ]


def test_off_by_default_costs_nothing(tmp_path: Path) -> None:
    config = section(enable_profiling=False)
    with (
        maybe_enable_profiling(config, base_folder=str(tmp_path)) as profiler,
        maybe_enable_memory_snapshot(config, base_folder=str(tmp_path)) as snapshots,
    ):
        assert profiler is None
        assert snapshots is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile_freq": 1}, r"profiler_active = 2 steps, but found 1"),
        ({"profiler_active": 0}, r"but found 0 and 1"),
        ({"profiler_warmup": -1}, r"but found 1 and -1"),
        (
            {"enable_profiling": False, "enable_memory_snapshot": True},
            r"enable_memory_snapshot: .* this run is on cpu",
        ),
    ],
)
def test_refuses_settings_that_cannot_work(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_profiling(section(**changes), CPU)


def test_refuses_them_where_they_are_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="but found 1"):
        train(tmp_path, 1, section(profile_freq=1))
    snapshots = maybe_enable_memory_snapshot(
        section(enable_memory_snapshot=True), device=CPU, base_folder=str(tmp_path)
    )
    with pytest.raises(ValueError, match="this run is on cpu"), snapshots:
        pass


class FakeCudaMemory:
    """Stands in for torch.cuda.memory where there is no device."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def _record_memory_history(self, **arguments: Any) -> None:
        self.calls.append(arguments)

    def _snapshot(self) -> dict[str, Any]:
        return {"segments": []}


def test_snapshots_are_written_by_frequency_and_when_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeCudaMemory()
    monkeypatch.setattr(torch.cuda, "memory", memory)
    config = section(enable_memory_snapshot=True, profile_freq=2)
    with (
        pytest.raises(torch.OutOfMemoryError),
        maybe_enable_memory_snapshot(
            config, device=torch.device("cuda"), base_folder=str(tmp_path), rank=1
        ) as snapshots,
    ):
        assert snapshots is not None
        for _ in range(3):
            snapshots.step()
        raise torch.OutOfMemoryError("no memory left")
    found = sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.pickle")
    )
    assert found == [
        "memory_snapshot/iteration_2/rank1_memory_snapshot.pickle",
        "memory_snapshot/iteration_3_exit/rank1_memory_snapshot.pickle",
    ]
    assert memory.calls == [{"max_entries": 100_000}, {"enabled": None}]
