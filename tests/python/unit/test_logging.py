"""The log line's prefix and which rank may write it."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys

import pytest

from torchtitan_cpp.logging import init_logger, logger, parse_log_rank


def test_line_has_torchtitans_prefix() -> None:
    stream = io.StringIO()
    init_logger(stream=stream)
    logger.info("Training starts at step %d", 1)
    assert re.fullmatch(
        r"\[titan\] \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - torchtitan_cpp - INFO - "
        r"Training starts at step 1\n",
        stream.getvalue(),
    )


def test_second_call_does_not_repeat_lines() -> None:
    first, second = io.StringIO(), io.StringIO()
    init_logger(stream=first)
    init_logger(stream=second)
    logger.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_a_rank_that_is_not_shown_writes_warnings_with_its_number() -> None:
    stream = io.StringIO()
    init_logger(3, shown_ranks=(0, 1), stream=stream)
    logger.info("quiet")
    logger.warning("loss is %s", "nan")
    assert "quiet" not in stream.getvalue()
    assert stream.getvalue().endswith(" - WARNING - rank 3: loss is nan\n")


def test_shown_rank_writes_everything() -> None:
    stream = io.StringIO()
    init_logger(3, shown_ranks=None, stream=stream)
    logger.info("loud")
    assert stream.getvalue().endswith(" - INFO - loud\n")


def test_importing_the_package_adds_no_handler() -> None:
    code = (
        "import logging, torchtitan_cpp.logging as l\n"
        "assert not l.logger.handlers and not logging.getLogger().handlers\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_log_rank_names_ranks() -> None:
    assert parse_log_rank("0, 3") == (0, 3)
    assert parse_log_rank("") == parse_log_rank(None) == (0,)


def test_log_rank_refuses_what_is_not_a_rank() -> None:
    with pytest.raises(ValueError, match="found 'all' in '0,all'"):
        parse_log_rank("0,all")


def test_level_is_info() -> None:
    init_logger(stream=io.StringIO())
    assert logger.getEffectiveLevel() == logging.INFO
