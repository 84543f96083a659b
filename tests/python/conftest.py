"""What every Python test starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchtitan_cpp.logging import logger

INTEGRATION = Path(__file__).parent / "integration"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", action="store_true", help="run what is marked nightly as well"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Integration tests are slow unless they are marked quick.

    What is marked nightly is deselected, whatever ``-m`` says.
    """
    for item in items:
        if INTEGRATION in item.path.parents and not item.get_closest_marker("quick"):
            item.add_marker(pytest.mark.slow)
    if config.getoption("nightly"):
        return
    left_out = [item for item in items if item.get_closest_marker("nightly")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


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
