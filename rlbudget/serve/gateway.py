"""What a gateway is: its plans, limits, keys, upstreams and the parts around a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from rlbudget.integrations.engine_settings import Settings
from rlbudget.serve.chat import error_body
from rlbudget.serve.hooks import Steering
from rlbudget.serve.incoming import Limits
from rlbudget.serve.journal import Journal
from rlbudget.serve.keys import Keyring
from rlbudget.serve.metrics import Metrics
from rlbudget.serve.pool import Backend, Pool
from rlbudget.serve.savings import Savings, savings_of

_MOST_TOLD = 1000
"""characters of an error"""

Opens = Callable[[], AbstractAsyncContextManager[Backend]]


@dataclass(slots=True)
class Gateway:
    """A running gateway."""

    settings: Settings
    limits: Limits = field(default_factory=Limits)
    keys: Keyring = field(default_factory=Keyring)
    """those that clients may show; none: no key is asked for"""
    journal: Journal | None = None
    """the request log"""
    savings: dict[str, Savings] = field(default_factory=dict)
    """by the name of a plan"""
    shadow: bool = False
    """whether nothing is cut, and only told what would have been"""
    metrics: Metrics = field(default_factory=Metrics)
    backends: dict[str, Pool] = field(default_factory=dict)
    """by the name of their model"""
    steering: list[Steering] = field(default_factory=list)
    """the parts around a request, in the order in which they are asked"""
    running: int = 0
    draining: bool = False

    def find(self, model: str) -> Pool | None:
        """What serves a model; the only one, where there is one alone."""
        if len(self.backends) == 1:
            return next(iter(self.backends.values()))
        return self.backends.get(model)

    def saves(self, name: str) -> Savings:
        """What is known of the lengths of a plan's requests."""
        if name not in self.savings:
            self.savings[name] = savings_of(self.settings.plans[name])
        return self.savings[name]


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
        return then(await responding, end)
    except BaseException:
        end()
        raise


def then(response: Response, end: Callable[[], None]) -> Response:
    """The same response; ``end`` is called when it is sent, or cannot be."""
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
