"""Clients that leave, and waiting for what has to come: for as long as a busy machine may take."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

PATIENCE = 60.0
"""seconds; what takes so long does not come at all"""


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def leaves(root: str, path: str, body: Mapping[str, Any]) -> Iterator[None]:
    """A request whose client leaves at the end of the block."""
    host, _, port = root.removeprefix("http://").partition(":")
    content = orjson.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(head.encode() + content)
        yield
