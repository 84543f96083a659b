"""What every Python test starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from torchtitan_cpp.logging import logger


@pytest.fixture(autouse=True)
def a_logger_as_imported() -> Iterator[None]:
    """Give the package's logger back as an import leaves it.

    A program's ``main`` takes it from the root logger. Left so, a handler that pytest
    closed would be written to by a later test, and ``caplog`` would see lines twice.
    """
    yield
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
