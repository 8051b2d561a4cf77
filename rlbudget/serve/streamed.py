"""A stream of events as an ASGI response, given up as soon as its client leaves.

One task waits for the client while another writes: a task group for each stream costs more than the
events of a short answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response


class Leaving:
    """Cancels the task that made it when the client leaves; ``end`` it in any case."""

    def __init__(self, http: HttpRequest) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self.gone = task, False
        self._watch = asyncio.ensure_future(left(http))
        self._watch.add_done_callback(self._left)

    def _left(self, watch: asyncio.Future[None]) -> None:
        if not watch.cancelled():
            self.gone = True
            self._task.cancel()

    def end(self) -> None:
        """Nobody is waited for any more."""
        self._watch.remove_done_callback(self._left)
        self._watch.cancel()

    def settled(self) -> bool:
        """Whether a ``CancelledError`` was the client's leaving alone, which is then over."""
        return self.gone and self._task.uncancel() == 0


class Streamed(Response):
    """Events as they come; ``leaving`` is ended with them."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str], leaving: Leaving
    ) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = "text/event-stream"
        self.init_headers(headers)
        self._events, self._leaving = events, leaving

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Write all of them."""
        try:
            async with aclosing(self._events) as events:
                head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(head)
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not self._leaving.settled():
                raise
        finally:
            self._leaving.end()


async def left(http: HttpRequest) -> None:
    """Return when the client has left; the body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
