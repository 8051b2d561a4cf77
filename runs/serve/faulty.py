"""The toy server behind a layer that breaks down as it is told, and says how its streams ended."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Literal

Fault = Literal["none", "dies", "hangs", "garbage", "closes early", "429", "aborts"]
FAULTS: tuple[Fault, ...] = ("dies", "hangs", "garbage", "closes early", "429", "aborts")


@dataclass
class Faulty:
    """An ASGI application around another one."""

    app: Any
    faults: list[tuple[Fault, int]] = field(default_factory=list)
    """for the next streams, in order: what happens, and after how many events"""
    active: int = 0
    """streams that are open"""
    aborted: int = 0
    """streams that the client closed before their end"""
    ended: int = 0
    """streams that came to their end"""
    closed_at: float = 0.0
    """when the last stream ended, one way or the other (``time.monotonic``)"""
    slow: float = 0.0
    """seconds between two events"""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on, or break down."""
        if scope["type"] != "http" or not scope["path"].endswith("/completions"):
            await self.app(scope, receive, send)
            return
        fault, after = self.faults.pop(0) if self.faults else ("none", 0)
        if fault == "429":
            await _answer(send, 429, b'{"error": {"message": "slow down"}}')
            return
        events = 0
        whole = False

        async def told(message: Any) -> None:
            nonlocal events, whole
            if message["type"] == "http.response.body" and message.get("body"):
                events += 1
                if self.slow:
                    await asyncio.sleep(self.slow)
                if fault != "none" and events > after:
                    await _break(fault, send)
            await send(message)
            whole = whole or (
                message["type"] == "http.response.body" and not message.get("more_body")
            )

        self.active += 1
        try:
            await self.app(scope, receive, told)
        except _EarlyError:
            whole = True
        finally:
            self.active -= 1
            self.closed_at = time.monotonic()
            if whole:
                self.ended += 1
            else:
                self.aborted += 1


class _EarlyError(Exception):
    """The stream is over."""


async def _break(fault: Fault, send: Any) -> None:
    if fault == "dies":
        raise ConnectionAbortedError
    if fault == "hangs":
        await asyncio.sleep(3600)
    body = {
        "garbage": b"data: \xff\xfe{{{\n\n",
        "aborts": b'data: {"choices": [{"index": 0, "text": "", "finish_reason": "abort"}]}\n\n',
        "closes early": b"",
    }[fault]
    await send({"type": "http.response.body", "body": body, "more_body": False})
    raise _EarlyError


async def _answer(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
