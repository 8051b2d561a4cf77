"""A request that passes through to the upstream as it is, and its answer as it comes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeAlias

import aiohttp
from starlette.responses import Response, StreamingResponse

from rlbudget.models.patience import Clock
from rlbudget.models.site import ServerError
from rlbudget.models.wire import Endpoint
from rlbudget.serve.chat import error_body

_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade", "host", "content-length", "authorization", "accept-encoding",
    "expect",
})  # fmt: skip
"""Headers of one connection, and the client's key, which is the gateway's own affair."""
Spent: TypeAlias = Callable[[int], None]
"""hears how many tokens a request read and wrote"""
_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')
_STREAMS = re.compile(rb'"stream"\s*:\s*true')
_TAIL = 4096
"""bytes at the end of an answer, where its count stands"""
_QUIET = ("Content-Type", "User-Agent", "Accept", "Accept-Encoding")
"""Headers that our client would add."""


async def pass_through(
    root: Endpoint, method: str, path: str, query: str, headers: Mapping[str, str],
    content: bytes, told: Mapping[str, str], spent: Spent | None = None,
) -> Response:  # fmt: skip
    """The upstream's answer, streamed; ``told`` are headers of ours, ``spent``
    hears of the tokens. 502 where it cannot be reached.

    Of an answer that comes in one piece nothing is heard before all of it is written: only a stream
    must begin within the upstream's time-out.
    """  # fmt: skip
    kept = {
        name: value for name, value in headers.items()
        if name not in _HOP and not name.startswith("x-rlbudget-")
    }  # fmt: skip
    address = root.site.at(path).update_query(query) if query else root.site.at(path)
    clock = root.clock()
    beginning = clock if _STREAMS.search(content) else Clock(root.deadline, root.deadline)
    try:
        response = await beginning.within(
            root.session.request(method, address, data=content or None, headers=kept,
                                 allow_redirects=False, skip_auto_headers=_QUIET), root.site
        )  # fmt: skip
    except ServerError as error:
        return _unreached(str(error))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return _unreached(str(root.site.fault(error)))
    clock.hear()
    given = {name: value for name, value in response.headers.items() if name.lower() not in _HOP}
    return StreamingResponse(
        _blocks(root, response, clock, spent), response.status, headers={**given, **told}
    )


def _unreached(said: str) -> Response:
    return Response(error_body(502, said), 502, media_type="application/json")


async def _blocks(
    root: Endpoint, response: aiohttp.ClientResponse, clock: Clock, spent: Spent | None
) -> AsyncIterator[bytes]:
    events, tail = 0, b""
    try:
        while block := await clock.within(response.content.readany(), root.site):
            clock.hear()
            if spent is not None:
                events += block.count(b"data:")
                tail = (tail + block)[-_TAIL:]
            yield block
    except (aiohttp.ClientError, OSError):  # the client sees the stream break, as without us
        return
    finally:
        response.close()
        if spent is not None and response.status == 200:
            spent(_tokens(events, tail))


def _tokens(events: int, tail: bytes) -> int:
    """What an answer cost: its own count, else an event a token."""
    said = _TOTAL.findall(tail)
    return int(said[-1]) if said else events
