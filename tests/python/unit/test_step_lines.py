"""The file of metrics where the system refuses to write it."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest

from torchtitan_cpp.metrics.jsonl import StepLines


def test_lines_that_do_not_fit_are_left_out_and_end_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = StepLines(tmp_path / "metrics.jsonl")
    lines.open(after_step=0)
    lines.write({"step": 1})
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))  # a line and a part
    try:
        lines.write({"step": 2})
        lines.write({"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    lines.write({"step": 4})
    lines.close()
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == [1, 4]
    assert caplog.text.count("metrics.jsonl: File too large; steps are left out") == 1
