"""Requests that pass through to an upstream that takes its time, or whose clients leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from clients import leaves, until
from gateways import StopsAt, gateway_of, serving_gateway
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rlbudget.models import load_model
from rlbudget.models.site import find_site
from rlbudget.models.wire import open_endpoint
from rlbudget.serve.streamed import left
from rlbudget.serve.upstream import look_at
from runs.integrations.toy_server import Toy, running, serving

TIMEOUT, SLOW = 0.5, 1.5
ASKED = {
    "model": "toy",
    "messages": [{"role": "user", "content": "1+1"}],
    "rlbudget": {"off": True},
}


class Slow:
    """An upstream that says nothing for a while."""

    def __init__(self) -> None:
        self.seconds = SLOW
        self.came = threading.Event()
        self.freed = threading.Event()
        """its client left"""

    def app(self) -> Starlette:
        async def answer(http: Request) -> Response:
            await http.body()
            self.came.set()
            leaving = asyncio.ensure_future(left(http))
            done, _ = await asyncio.wait({leaving}, timeout=self.seconds)
            if done:
                self.freed.set()
            leaving.cancel()
            return Response(b"{}", media_type="application/json")

        return Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def served(slow: Slow) -> Iterator[str]:
    gateway = gateway_of(StopsAt(24))
    with serving(Toy(load_model("embedded"))) as toy, running(slow.app()) as upstream:

        @asynccontextmanager
        async def opened() -> Any:
            async with look_at(toy, gateway.settings, tokenizer="embedded") as backend:
                site = find_site(upstream.removesuffix("/v1"), None, "")
                async with open_endpoint(site, retries=0, timeout=TIMEOUT, deadline=60) as root:
                    yield replace(backend, root=root)

        with serving_gateway(gateway, opened) as root:
            yield root


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_an_answer_in_one_piece_may_take_longer_than_a_stream_may_be_silent(
    served: str, path: str
) -> None:
    assert httpx.post(f"{served}{path}", json=ASKED, timeout=60).status_code == 200
    late = httpx.post(f"{served}{path}", json={**ASKED, "stream": True}, timeout=60)
    assert late.status_code == 502
    assert "nothing came for 0.5 s" in late.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_client_that_leaves_before_the_answer_frees_the_upstream(
    served: str, slow: Slow, path: str
) -> None:
    slow.seconds = 240.0
    with leaves(served, path, ASKED):
        assert slow.came.wait(60)
    assert slow.freed.wait(60)
    until(
        lambda: "rlbudget_requests_running 0.0" in httpx.get(f"{served}/metrics", timeout=60).text
    )
