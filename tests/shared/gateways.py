"""Gateways on loopback, and an upstream that says what it was asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from rlbudget.integrations.engine_settings import settings_for
from rlbudget.policy.network import Decision
from rlbudget.policy.observation import feature_names
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.serve.app import make_app
from rlbudget.serve.gateway import Gateway, Opens
from rlbudget.serve.keys import Key, Keyring
from rlbudget.signals.tokens import TOP_SIGNALS
from rlbudget.strategies.plan import Plan
from runs.integrations.toy_server import running


def gateway_of(
    given: Plan | StopPolicy,
    *,
    keys: Sequence[Key] = (),
    shadow: bool = False,
    **others: Plan | StopPolicy,
) -> Gateway:
    """Of the plan ``default``, and others by their names."""
    settings = settings_for({"default": given, **others}, "embedded")
    return Gateway(settings, keys=Keyring(keys), shadow=shadow)


class StopsAt:
    """A policy that stops at one checkpoint."""

    features = feature_names(TOP_SIGNALS, "free")
    price_range = (1e-5, 1e-2)

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(self, observation: np.ndarray[Any, Any], *, token_price: float) -> Decision:
        return Decision(float(observation[1]) >= self.tokens, 0.75)


@contextmanager
def serving_gateway(gateway: Gateway, *opens: Opens) -> Iterator[str]:
    with running(make_app(gateway, opens), lifespan="on") as url:
        yield url.removesuffix("/v1")


class Echo:
    """An upstream whose answers say what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.paths: list[tuple[str, str]] = []
        """as they were spelled, with their query"""

    def app(self) -> Starlette:
        async def answer(http: Request) -> Response:
            content = await http.body()
            self.asked.append((http.method, http.url.path, dict(http.headers), content))
            self.paths.append((http.scope["raw_path"].decode(), http.url.query))
            told = {"method": http.method, "path": http.url.path, "query": http.url.query,
                    "body": content.decode()}  # fmt: skip
            if b'"stream":true' in content.replace(b" ", b""):
                return StreamingResponse(
                    _blocks([orjson.dumps({"part": n, **told}) for n in range(3)]),
                    media_type="text/event-stream",
                )
            return Response(orjson.dumps(told), 207, {"x-upstream": "echo"})

        return Starlette(
            routes=[Route("/{path:path}", answer, methods=["GET", "POST", "DELETE", "PUT"])]
        )


async def _blocks(parts: Sequence[bytes]) -> Any:
    for part in parts:
        yield b"data: " + part + b"\n\n"
    yield b"data: [DONE]\n\n"
