"""Ports for jobs whose rank 0 listens."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that the system gives to nobody else inside.

    It stays bound, without listening: the system then leaves it out when it chooses
    ports for others, while a store that asks for it by number may still listen there
    (both reuse addresses).
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield int(holder.getsockname()[1])
