"""The one HTTP client: every request ends, every answer has a size, every connection is closed.

It stands on aiohttp: a cancelled request closes its connection at once, without an ``await`` that
a second cancel could break off, and a block of many events is read at once.
``rlbudget.models.caller`` is its face for threads.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import msgspec

from rlbudget.errors import UserError, missing_extra
from rlbudget.models.messages import Chunk, read
from rlbudget.models.patience import Clock, Patience
from rlbudget.models.server_events import Events
from rlbudget.models.site import ServerError, Site

try:
    import aiohttp
    from aiohttp.http_exceptions import HttpProcessingError
except ModuleNotFoundError as missing:
    raise missing_extra("serve", "aiohttp") from missing

T = TypeVar("T")

NEUTRAL: Mapping[str, Any] = {
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
}
"""The model's own distribution. Said in every request: a server's defaults may be others."""

BROKEN = frozenset({"abort", "aborted", "cancelled", "canceled", "error", "timeout"})
"""Finish reasons of a request that the server gave up: a fault, not an end."""

ROOM = 1 << 20
"""Bytes of an answer, or of an event, beside those of the tokens that were asked for."""

_REFUSAL = 1 << 16
"""Bytes of an error's body that are read."""
_PIECE = 1 << 16
_CHOICES = 16
"""Continuations that one event may hold; one is asked for."""
_GOODBYE = 0.05
"""Seconds that a stream may take to close after ``[DONE]``, for its connection to be kept."""
_BROKEN_OFF = (aiohttp.ClientError, HttpProcessingError, OSError)
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError, zlib.error)


def room_for(tokens: int, top: int) -> int:
    """Bytes that an answer of ``tokens`` tokens with ``top`` log-probabilities each may have."""
    return ROOM + tokens * (top + 8) * 256


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that is asked from an event loop; made by ``open_endpoint``."""

    site: Site
    session: aiohttp.ClientSession = field(repr=False)
    retries: int
    """faults that one decode survives"""
    timeout: float
    """seconds that may pass without a token, and that an answer in one piece may take"""
    deadline: float
    """seconds that one request may take in all"""

    @property
    def patience(self) -> Patience:
        """That of a fresh decode."""
        return Patience(self.retries, self.timeout)

    def clock(self, *, whole: bool = False) -> Clock:
        """That of a fresh request, for a stream or for a ``whole`` answer."""
        return Clock(self.timeout, min(self.timeout, self.deadline) if whole else self.deadline)

    async def ask(
        self,
        kind: type[T],
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        patience: Patience | None = None,
        clock: Clock | None = None,
        most: int = 2 * ROOM,
    ) -> T:
        """The message that is answered, of at most ``most`` bytes, without a ``body`` to a GET.

        Raises ``ServerError`` where patience or time ends before, ``UserError`` where the request
        is refused.
        """
        patience, clock = patience or self.patience, clock or self.clock(whole=True)
        while True:
            try:
                answer = await self.fetch(path, body, clock, most=most)
                self.site.check(answer.status, answer.content, answer.headers)
                return read(kind, answer.content)
            except ServerError as error:
                fault = error
            except UserError:
                raise
            except _UNREADABLE as error:
                fault = self.site.fault(error, sent=True)
            await asyncio.sleep(clock.pause(patience, fault))

    async def fetch(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        clock: Clock,
        *,
        most: int = 2 * ROOM,
    ) -> Answer:
        """One attempt at a whole answer, whatever its status; ``ServerError`` where it fails."""
        response = await self._open(path, body, clock)
        try:
            content = await self._whole(response, clock, most)
        finally:
            response.close()
        return Answer(response.status, response.headers, content)

    async def stream(
        self, path: str, body: Mapping[str, Any], clock: Clock, *, event: int, whole: int
    ) -> AsyncGenerator[list[Chunk], None]:
        """One attempt at a stream: what came in a block at a time.

        ``event`` and ``whole`` are the bytes that an event and all of it may have. Raises
        ``ServerError`` where it breaks down, also in the middle, ``UserError`` where the request
        is refused. Closing the generator closes the connection at once.
        """
        site, events, size = self.site, Events(event), 0
        response = await self._open(path, body, clock)
        try:
            if response.status != 200:
                content = await self._whole(response, clock, _REFUSAL)
                site.check(response.status, content, response.headers)
            async with aclosing(self._pieces(response, clock)) as pieces:
                async for piece in pieces:
                    size += len(piece)
                    if size > whole:
                        raise ServerError(f"{site.name}: it sent more than {whole:,} bytes")
                    for chunks in self._chunks(events, piece):
                        if any(one.says for chunk in chunks for one in chunk.choices or ()):
                            clock.hear()
                        given = time.monotonic()
                        yield chunks
                        clock.heard += time.monotonic() - given
                    if events.done:
                        break
            for chunks in self._chunks(events, b"\n\n"):
                yield chunks
            if events.done and not response.content.at_eof():
                with suppress(TimeoutError, *_BROKEN_OFF):
                    async with asyncio.timeout(_GOODBYE):
                        while await response.content.readany():
                            pass
        finally:
            response.close()

    def _chunks(self, events: Events, piece: bytes) -> Iterator[list[Chunk]]:
        """Those that end in this piece; what came before a fault comes before it."""
        found: list[Chunk] = []
        fault: Exception | None = None
        try:
            for text in events.feed(piece):
                chunk = read(Chunk, text)
                self.site.check_error(chunk.error)
                if len(chunk.choices or ()) > _CHOICES:
                    raise ValueError(f"{len(chunk.choices or ()):,} continuations")
                found.append(chunk)
        except (ServerError, UserError) as error:
            fault = error
        except _UNREADABLE as error:
            fault = self.site.fault(error, sent=True)
        if found:
            yield found
        if fault is not None:
            raise fault

    async def _open(
        self, path: str, body: Mapping[str, Any] | None, clock: Clock
    ) -> aiohttp.ClientResponse:
        method, content = ("GET", None) if body is None else ("POST", dumps(body))
        if clock.left() <= 0:
            raise clock.over(self.site)
        asked = self.session.request(
            method, self.site.at(path), data=content, allow_redirects=False
        )
        try:
            return await clock.within(asked, self.site)
        except ServerError:
            raise
        except aiohttp.ClientResponseError as error:
            raise self.site.fault(ValueError(error.message), sent=True) from None
        except _BROKEN_OFF as error:
            raise self.site.fault(error) from None
        except _UNREADABLE as error:
            raise self.site.fault(error, sent=True) from None

    async def _whole(self, response: aiohttp.ClientResponse, clock: Clock, most: int) -> bytes:
        most = most if response.status == 200 else min(most, _REFUSAL)
        found = bytearray()
        async with aclosing(self._pieces(response, clock)) as pieces:
            async for piece in pieces:
                found += piece
                if len(found) > most and response.status == 200:
                    raise ServerError(f"{self.site.name}: its answer is longer than {most:,} bytes")
                if len(found) > most:
                    # A key may be cut at the end.
                    return bytes(found[: most - max(map(len, self.site.secrets), default=0)])
        return bytes(found)

    async def _pieces(
        self, response: aiohttp.ClientResponse, clock: Clock
    ) -> AsyncGenerator[bytes, None]:
        """The body, decompressed, in pieces of bounded size."""
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        unpack: Any = None
        if coding in ("gzip", "x-gzip", "deflate"):
            unpack = zlib.decompressobj(47)  # by its first bytes
        elif coding not in ("identity", ""):
            raise ServerError(
                f"{self.site.name}: it compresses its answer ({self.site.clean(coding)[:20]})"
                " although it was asked not to"
            )
        watch = _Watch(clock, response.content)
        try:
            while data := await watch.read():
                if clock.left() <= 0:
                    raise clock.over(self.site)
                if unpack is None:
                    yield data
                while unpack is not None and data and not unpack.eof:
                    yield unpack.decompress(data, _PIECE)
                    data = unpack.unconsumed_tail
                    await asyncio.sleep(0)  # a little data can become much
                    if clock.left() <= 0:
                        raise clock.over(self.site)
            if unpack is not None and not unpack.eof:
                raise ServerError(f"{self.site.name}: the compressed answer breaks off")
        except ServerError:
            raise
        except _LateError:
            raise clock.over(self.site) from None
        except _BROKEN_OFF as error:
            raise self.site.fault(error) from None
        except _UNREADABLE as error:
            raise self.site.fault(error, sent=True) from None
        finally:
            watch.end()


class _LateError(Exception):
    """The time of a request is over."""


class _Watch:
    """Reads a body within its clock: one timer for all of it, where each wait once had its own."""

    __slots__ = ("_clock", "_content", "_timer", "_waits")

    def __init__(self, clock: Clock, content: aiohttp.StreamReader) -> None:
        self._clock, self._content = clock, content
        self._timer: asyncio.TimerHandle | None = None
        self._waits = False

    async def read(self) -> bytes:
        """What came; empty at the end. Raises ``_LateError`` too."""
        if self._timer is None:
            self._set()
        self._waits = True
        try:
            return await self._content.readany()
        finally:
            self._waits = False

    def end(self) -> None:
        """Nothing is read any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self) -> None:
        left = max(self._clock.left(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(left, self._rings)

    def _rings(self) -> None:
        self._timer = None
        if not self._waits:  # whoever takes what is read has not come back: no silence
            return
        if self._clock.left() > 0:
            self._set()
        else:
            self._content.set_exception(_LateError())


@asynccontextmanager
async def open_endpoint(
    site: Site, *, retries: int, timeout: float, deadline: float
) -> AsyncIterator[Endpoint]:
    """A server's connections, kept open and closed at the end.

    ``timeout`` and ``deadline`` are those of ``Endpoint``. The system's proxies are heeded.
    Cookies and redirects are not.
    """
    at = site.at("")
    proxy = None if proxy_bypass(at.host or "") else getproxies().get(at.scheme)
    async with aiohttp.ClientSession(
        headers=site.headers,
        auto_decompress=False,
        connector=_Connector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(timeout, 10.0)),
        proxy=proxy,
    ) as session:
        yield Endpoint(site, session, retries, timeout, deadline)


def check_times(retries: int, timeout: float, deadline: float) -> None:
    """``UserError`` for settings out of range."""
    if not (retries >= 0 and timeout > 0 and deadline > 0):
        raise UserError(
            "retries must be at least 0, timeout and deadline above 0, not"
            f" {retries}, {timeout:g}, {deadline:g}"
        )


class _Connector(aiohttp.TCPConnector):
    """Takes no connection again on which something came that nobody had asked for: it would be
    taken for the next answer."""  # fmt: skip

    async def connect(self, *args: Any, **kwargs: Any) -> aiohttp.connector.Connection:
        while True:
            found = await super().connect(*args, **kwargs)
            if found.protocol is None or not found.protocol.should_close:
                transport = found.transport
                if transport is not None and hasattr(transport, "max_size"):
                    transport.max_size = _PIECE  # asyncio's 256 kB of a flood take too long
                return found
            found.close()


def dumps(body: Mapping[str, Any]) -> bytes:
    """A request's body; ``UserError`` for text that is no UTF-8."""
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise UserError(f"the request cannot be sent: {error}") from None
