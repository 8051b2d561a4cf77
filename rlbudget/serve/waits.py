"""uvicorn's HTTP with a time-out on each of its waits.

A client that sends its headers drop by drop is cut off, as is one that does not read its answer:
its upstream stream ends with it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS = 20.0
"""seconds that the head of a request may take"""
READING = 60.0
"""seconds for which a client may read nothing of what is sent to it"""


class PatientProtocol(HttpToolsProtocol):
    """One connection."""

    headers_within = HEADERS
    read_within = READING
    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The first request has yet to come."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """A head that is not whole yet is waited for only so long."""
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self._head is None:
            self._await_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._stop("_head")
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than is written."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.read_within, self.transport.abort)

    def resume_writing(self) -> None:
        """It caught up."""
        self._stop("_unread")
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """No wait is left."""
        self._stop("_head")
        self._stop("_unread")
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head = self.loop.call_later(self.headers_within, self.transport.abort)

    def _stop(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)
