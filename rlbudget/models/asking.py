"""One request to a server that can be repeated, and its routes beside those of OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from rlbudget.models.messages import read
from rlbudget.models.wire import ROOM, Endpoint

T = TypeVar("T")


async def ask_once(
    endpoint: Endpoint,
    kind: type[T],
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    most: int = 2 * ROOM,
) -> T:
    """One attempt at a message of at most ``most`` bytes; without a ``body`` it is a GET.

    Raises ``UserError`` where the request is refused, ``ServerError`` where the server, or the way
    to it, fails, takes too long or sends something else.
    """
    answer = await endpoint.fetch(path, body, endpoint.clock(whole=True), most=most)
    endpoint.site.check(answer.status, answer.content, answer.headers)
    try:
        return read(kind, answer.content)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise endpoint.site.fault(error, sent=True) from None


def root_of(endpoint: Endpoint) -> Endpoint:
    """The same server without ``/v1``: where it keeps routes that are not OpenAI's."""
    site = endpoint.site
    head, _, query = site.url.partition("?")
    root = head.rstrip("/").removesuffix("/v1") + (f"?{query}" if query else "")
    return replace(endpoint, site=replace(site, url=root))
