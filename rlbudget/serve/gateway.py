"""What a gateway is: its plans, limits, keys, upstreams and the parts around a request."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from starlette.responses import Response

from rlbudget.integrations.engine_settings import Settings
from rlbudget.serve.chat import error_body
from rlbudget.serve.hooks import Steering
from rlbudget.serve.incoming import Limits
from rlbudget.serve.metrics import Metrics
from rlbudget.serve.pool import Backend, Pool

_MOST_TOLD = 1000
"""characters of an error"""

Opens = Callable[[], AbstractAsyncContextManager[Backend]]


@dataclass(slots=True)
class Gateway:
    """A running gateway."""

    settings: Settings
    limits: Limits = field(default_factory=Limits)
    key_digests: Sequence[str] = ()
    """SHA-256 of the keys that clients may show, hexadecimal; none: no key is asked for"""
    shadow: bool = False
    """whether nothing is cut, and only told what would have been"""
    metrics: Metrics = field(default_factory=Metrics)
    backends: dict[str, Pool] = field(default_factory=dict)
    """by the name of their model"""
    steering: list[Steering] = field(default_factory=list)
    """the parts around a request, in the order in which they are asked"""
    running: int = 0
    draining: bool = False

    def backend(self, model: str) -> Pool:
        """That of a model; the only one, where there is one alone."""
        if len(self.backends) == 1:
            return next(iter(self.backends.values()))
        if model not in self.backends:
            raise LookupError(model)
        return self.backends[model]

    def key_of(self, headers: Mapping[str, str]) -> str | None:
        """What the key of a request is called; None where no key is asked for."""
        return _digest_of(headers)[:12] if self.key_digests else None

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether a request shows a key that is known, in constant time."""
        if not self.key_digests:
            return True
        digest = _digest_of(headers)
        found = False
        for known in self.key_digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _digest_of(headers: Mapping[str, str]) -> str:
    given = headers.get("authorization", "")
    key = given[7:] if given[:7].lower() == "bearer " else headers.get("api-key", "")
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error in OpenAI's form."""
    if len(message) > _MOST_TOLD:  # it may show what the client sent
        message = message[:_MOST_TOLD].rstrip() + "…"
    return Response(
        error_body(status, message), status, headers=headers, media_type="application/json"
    )


async def counted(
    gateway: Gateway, responding: Awaitable[Response], over: Callable[[], None] | None = None
) -> Response:
    """Count a request until its last byte is sent; ``over`` is called then, or where it breaks
    down."""  # fmt: skip
    gateway.running += 1

    def end() -> None:
        gateway.running -= 1
        if over is not None:
            over()

    try:
        response = await responding
    except BaseException:
        end()
        raise
    sent = response.__call__

    async def send_all(scope: Any, receive: Any, send: Any) -> None:
        try:
            await sent(scope, receive, send)
        finally:
            end()

    return _Sent(send_all, response.status_code)


class _Sent(Response):
    """A response that tells when it is sent."""

    def __init__(self, send_all: Any, status: int) -> None:
        super().__init__(status_code=status)
        self._send_all = send_all

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._send_all(scope, receive, send)
