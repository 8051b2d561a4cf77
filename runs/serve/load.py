"""Clients of a chat endpoint that cost little: bare protocols, many streams in one process.

Nothing is parsed that is not needed: the times that a stamping upstream writes into its tokens, the
last piece of a stream, whether it came to its end.
"""

from __future__ import annotations

import asyncio
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

_STAMP = re.compile(rb"~(\d{18});")
_FRAMING = re.compile(rb"\r\n[0-9a-f]+\r\n")
"""between two chunks of HTTP, which may lie inside of an event"""
_TAIL = 3000
"""bytes kept of the end of an answer"""
_END = b"0\r\n\r\n"


@dataclass(slots=True)
class Answer:
    """How one request was answered."""

    status: int = 0
    size: int = 0
    first: float = 0.0
    """seconds to the first event that holds a text"""
    took: float = 0.0
    """seconds to the end"""
    done: bool = False
    """whether it came to its end"""
    late: list[float] = field(default_factory=list)
    """seconds from the writing of each token upstream to its arrival here"""
    tail: bytes = b""
    in_second: Counter[int] = field(default_factory=Counter)
    """tokens that came, by the second of the clock; where times are told"""

    @property
    def whole(self) -> bool:
        said = _FRAMING.sub(b"", self.tail)
        return self.status == 200 and self.done and b"data: [DONE]" in said

    def ended(self) -> dict[str, Any]:
        """The event that tells the finish reason."""
        told = _FRAMING.sub(b"", self.tail).split(b"data: ")
        events = [part for part in told if b'"finish_reason":"' in part]
        found: dict[str, Any] = orjson.loads(events[-1].partition(b"\n")[0])
        return found


class _Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._answer = Answer()
        self._begun = 0.0
        self._last = 0
        self._ended: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        self._answer, self._last = Answer(), 0
        self._ended = asyncio.get_running_loop().create_future()
        self._begun = time.monotonic()
        self.transport.write(request)
        return self._ended

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if not answer.status:
            answer.status = int(data[9:12])
        if not answer.first and b"data: " in data:
            answer.first = time.monotonic() - self._begun
        answer.size += len(data)
        if b"~" in data:
            now, before = time.monotonic_ns(), len(answer.late)
            for stamp in map(int, _STAMP.findall(data)):
                if stamp > self._last:  # a text may be shown under two names
                    self._last = stamp
                    answer.late.append((now - stamp) * 1e-9)
            answer.in_second[now // 10**9] += len(answer.late) - before
        answer.tail = (data if len(data) > _TAIL else answer.tail + data)[-_TAIL:]
        if data.endswith(b"\r\n") and answer.tail.endswith(_END):
            self._finish(done=True)
        elif answer.status != 200 and answer.tail.endswith(b"}"):  # an error, in one piece
            self._finish(done=False)

    def connection_lost(self, _: Exception | None) -> None:
        self._finish(done=False)

    def _finish(self, *, done: bool) -> None:
        if self._ended is not None and not self._ended.done():
            self._answer.done = done
            self._answer.took = time.monotonic() - self._begun
            self._ended.set_result(self._answer)


def request_of(url: str, model: str, tokens: int) -> bytes:
    """A streamed chat of so many tokens."""
    parts = urlsplit(url)
    body = orjson.dumps({
        "model": model, "stream": True, "max_tokens": tokens, "temperature": 0.7,
        "messages": [{"role": "user", "content": "Please add 12, 30 and 7."}],
    })  # fmt: skip
    return (
        f"POST {parts.path}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        "content-type: application/json\r\nauthorization: Bearer none\r\naccept: */*\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def connected(url: str) -> Any:
    """A connection of ours."""
    parts = urlsplit(url)
    _, client = await asyncio.get_running_loop().create_connection(
        _Client, str(parts.hostname), parts.port or 80
    )
    return client


async def in_turn(url: str, request: bytes, times: int) -> list[Answer]:
    """One after the other, over one connection."""
    client = await connected(url)
    answers = [await client.ask(request) for _ in range(times)]
    client.transport.close()
    return answers


async def at_once(
    url: str, request: bytes, streams: int, *, seconds: float, spread: float = 0.0
) -> list[Answer]:
    """So many streams all the time, each followed by another until ``seconds`` are over.

    ``spread`` are the seconds over which the first ones begin. Streams that run at the end come
    to theirs.
    """
    until = time.monotonic() + seconds
    found: list[Answer] = []

    async def one(number: int) -> None:
        await asyncio.sleep(spread * number / streams)
        client = await connected(url)
        while True:
            answer = await client.ask(request)
            found.append(answer)
            if time.monotonic() >= until:
                break
            if client.transport.is_closing():
                client = await connected(url)
        client.transport.close()

    await asyncio.gather(*(one(number) for number in range(streams)))
    return found


def steady(answers: Sequence[Answer], spread: float) -> float:
    """Tokens a second while all streams ran: the median of the seconds in the middle."""
    told: Counter[int] = Counter()
    for answer in answers:
        told.update(answer.in_second)
    seconds = sorted(told)[math.ceil(spread) + 1 :]
    middle = seconds[: max(len(seconds) // 2, 1)]
    return statistics.median(told[second] for second in middle)


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted or unsorted values."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
