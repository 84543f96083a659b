"""The progress line: what it says, when it is drawn, and how it makes room."""

from __future__ import annotations

import io
import logging

import pytest

from torchtitan_cpp.logging import logger
from torchtitan_cpp.metrics.progress import Progress, format_duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_tells_speed_and_time_left_without_the_slow_first_step() -> None:
    clock = Clock()
    progress = Progress(total_steps=100, stream=Terminal(), clock=clock)
    clock.now = 60.0
    progress.update(1, loss=8.0471)
    assert progress.text() == (
        "step 1/100  [                    ]   1%  loss 8.0471  60.00 s/step  "
        "1h 39m left"
    )
    for step in range(2, 51):
        clock.now += 0.5
        progress.update(step)
    assert progress.text() == (
        "step 50/100  [==========          ]  50%  loss 8.0471  0.50 s/step  25s left"
    )


def test_speed_follows_the_last_steps() -> None:
    clock = Clock()
    progress = Progress(total_steps=1000, stream=Terminal(), clock=clock)
    for step in range(1, 101):
        clock.now += 9.0 if step <= 50 else 2.0
        progress.update(step)
    assert "2.00 s/step  30m 00s left" in progress.text()


def test_resumed_run_counts_from_its_start() -> None:
    clock = Clock()
    progress = Progress(total_steps=20, start_step=10, stream=Terminal(), clock=clock)
    assert progress.text() == "step 10/20  [==========          ]  50%"
    for step in (11, 12):
        clock.now += 3.0
        progress.update(step)
    assert "3.00 s/step  24s left" in progress.text()


def test_draws_on_a_terminal_and_cleans_up() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress(total_steps=4, stream=terminal, clock=clock) as progress:
        clock.now = 1.0
        progress.update(1)
        assert terminal.getvalue().startswith("\rstep 1/4  [=====")
        assert terminal.getvalue().endswith("3s left\033[K")
    assert terminal.getvalue().endswith("\r\033[K")


def test_does_not_draw_more_often_than_a_person_can_see() -> None:
    terminal, clock = Terminal(), Clock()
    progress = Progress(total_steps=1000, stream=terminal, clock=clock)
    for step in range(1, 101):
        clock.now += 0.01
        progress.update(step)
    assert 9 <= terminal.getvalue().count("\r") <= 11


def test_is_cut_to_the_terminals_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    Progress(total_steps=4, stream=terminal).update(1)
    assert terminal.getvalue() == "\rstep 1/4  [=====   \033[K"


@pytest.mark.parametrize("enabled", [True, False])
def test_writes_nothing_without_a_terminal_or_when_disabled(enabled: bool) -> None:
    stream = io.StringIO() if enabled else Terminal()
    with Progress(total_steps=4, stream=stream, enabled=enabled) as progress:
        progress.update(1)
    assert stream.getvalue() == ""


def test_a_log_line_erases_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    handler = logging.StreamHandler(terminal)
    monkeypatch.setattr(logger, "handlers", [handler])
    with Progress(total_steps=4, stream=terminal) as progress:
        progress.update(1)
        logger.warning("something to read")
        progress.update(2)
    text = terminal.getvalue()
    assert "\033[K\r\033[Ksomething to read\n\rstep 2/4" in text
    assert handler.filters == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (125, "2m 05s"),
        (3780, "1h 03m"),
        (187200, "2d 04h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
