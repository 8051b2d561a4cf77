"""One question to a server, one JSON object back; asked again on faults that pass."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from rlbudget.errors import UserError
from rlbudget.models.completions import Endpoint
from rlbudget.models.wire import Patience, ServerError, dumps, httpx, loads


async def ask_once(
    endpoint: Endpoint, path: str, body: Mapping[str, Any] | None, seconds: float
) -> Any:
    """What the server answers, read as JSON; without a ``body`` it is a GET.

    ``path`` is below ``/v1`` or a whole address. Raises ``UserError`` where the request is
    refused, ``ServerError`` where the server, or the way to it, fails or takes longer.
    """
    site = endpoint.site
    method, content = "GET" if body is None else "POST", None if body is None else dumps(body)
    try:
        async with asyncio.timeout(seconds):
            response = await endpoint.client.request(method, path, content=content)
        site.check(response)
        return loads(response.content)
    except (UserError, ServerError):
        raise
    except TimeoutError:
        raise ServerError(f"{site.name}: no answer within {seconds:g} s") from None
    except (httpx.HTTPError, TypeError, ValueError) as error:
        raise site.fault(error) from None


async def ask(
    endpoint: Endpoint,
    path: str,
    body: Mapping[str, Any] | None,
    patience: Patience,
    *,
    seconds: float,
) -> dict[str, Any]:
    """``ask_once`` for an object, until patience ends."""
    while True:
        try:
            found = await ask_once(endpoint, path, body, seconds)
            if isinstance(found, dict):
                return found
            raise ServerError(f"{endpoint.site.name}: it sent {type(found).__name__}, no object")
        except ServerError as error:
            await asyncio.sleep(patience.pause(error))
