"""Parts around a request: asked before it, told after it, exactly once, and never at its cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest
from clients import leaves, until
from gateways import StopsAt, gateway_of, serving_gateway
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from rlbudget.models import load_model
from rlbudget.serve.hooks import Arrival, Extra, Outcome, RefusedError, Steering
from rlbudget.serve.keys import digests_of
from rlbudget.serve.upstream import look_at
from rlbudget.tasks import load_task
from runs.integrations.toy_server import Toy, serving


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with serving(Toy(load_model("embedded"))) as url:
        yield url


@pytest.fixture(scope="module")
def question() -> str:
    return load_task("embedded", n=1, seed=3).questions[0].question


def chat(root: str, question: str, **more: Any) -> httpx.Response:
    body = {"model": "toy", "messages": [{"role": "user", "content": question}],
            "temperature": 0.0, **more}  # fmt: skip
    return httpx.post(f"{root}/v1/chat/completions", json=body, timeout=60)


class Told:
    """A part that writes down what it is told."""

    def __init__(self) -> None:
        self.arrived: list[Arrival] = []
        self.ended: list[Outcome] = []

    async def before(self, arrival: Arrival) -> Arrival:
        self.arrived.append(arrival)
        return arrival

    def part(self, name: str = "told", **more: Any) -> Steering:
        return Steering(name, before=self.before, after=self.ended.append, **more)


def test_a_part_sees_a_request_come_and_end(upstream: str, question: str) -> None:
    told = Told()
    gateway = gateway_of(StopsAt(24))
    gateway.steering.append(told.part())
    with serving_gateway(gateway, partial(look_at, upstream, gateway.settings,
                                          tokenizer="embedded")) as root:  # fmt: skip
        found = chat(root, question, rlbudget={"request_id": "r1", "user": "u"}).json()
        chat(root, question, stream=True)
        chat(root, question, tools=[{"type": "function"}])
        assert chat(root, question, rlbudget={"token_price": -1}).status_code == 400
    ours = found["rlbudget"]
    assert [one.ended for one in told.ended] == ["answered", "answered", "passed"]
    assert [one.id for one in told.arrived] == [one.arrival.id for one in told.ended]
    first = told.ended[0]
    assert first.arrival.id == ours["request_id"] == "r1"
    assert first.arrival.wanted.said is not None
    assert first.arrival.wanted.said["metadata"] == {"user": "u"}
    assert (first.reason, first.token_price) == (ours["reason"], ours["token_price"])
    assert first.tokens == found["usage"]["completion_tokens"]
    assert first.request is not None
    assert first.request.answer == found["choices"][0]["message"]["content"].strip()
    assert told.ended[1].first_seconds is not None
    assert told.ended[2].token_price is None


def test_a_part_changes_price_arm_and_what_is_shown(upstream: str, question: str) -> None:
    async def dearer(arrival: Arrival) -> Arrival:
        return replace(arrival, price_factor=2.0, arm="b", shown={"queued": 0.5})

    gateway = gateway_of(StopsAt(24))
    gateway.steering.append(Steering("dearer", before=dearer))
    with serving_gateway(gateway, partial(look_at, upstream, gateway.settings,
                                          tokenizer="embedded")) as root:  # fmt: skip
        response = chat(root, question, rlbudget={"token_price": 0.001})
        most = chat(root, question, rlbudget={"token_price": 0.009}).json()["rlbudget"]
    ours = response.json()["rlbudget"]
    assert (ours["token_price"], ours["arm"], ours["queued"]) == (0.002, "b", 0.5)
    assert response.headers["x-rlbudget-arm"] == "b"
    assert most["token_price"] == StopsAt.price_range[1]


def test_a_part_refuses_and_those_before_it_are_told(upstream: str, question: str) -> None:
    async def full(arrival: Arrival) -> Arrival:
        raise RefusedError(429, "the queue is full", retry_after=3)

    first, last = Told(), Told()
    gateway = gateway_of(StopsAt(24))
    gateway.steering += [first.part(), Steering("full", before=full), last.part()]
    with serving_gateway(gateway, partial(look_at, upstream, gateway.settings,
                                          tokenizer="embedded")) as root:  # fmt: skip
        response = chat(root, question)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["message"] == "the queue is full"
    assert [(one.ended, one.status) for one in first.ended] == [("refused", 429)]
    assert last.arrived == last.ended == []


def test_a_part_that_breaks_down_costs_no_answer(upstream: str, question: str) -> None:
    async def broken(arrival: Arrival) -> Arrival:
        raise ValueError("before")

    def after(outcome: Outcome) -> None:
        raise ValueError("after")

    told = Told()
    gateway = gateway_of(StopsAt(24))
    gateway.steering += [told.part(), Steering("broken", before=broken, after=after)]
    with serving_gateway(gateway, partial(look_at, upstream, gateway.settings,
                                          tokenizer="embedded")) as root:  # fmt: skip
        assert chat(root, question).json()["choices"][0]["message"]["content"]
        counted = httpx.get(f"{root}/metrics", timeout=60).text
    assert 'rlbudget_steering_failures_total{part="broken"} 2.0' in counted
    assert [one.ended for one in told.ended] == ["answered"]


def test_a_client_that_leaves_while_a_part_lets_it_wait_is_given_up(
    upstream: str, question: str
) -> None:
    seen: list[str] = []

    async def waits(arrival: Arrival) -> Arrival:
        seen.append("waits")
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return arrival

    told = Told()
    gateway = gateway_of(StopsAt(24))
    gateway.steering += [told.part(), Steering("waits", before=waits)]
    with serving_gateway(gateway, partial(look_at, upstream, gateway.settings,
                                          tokenizer="embedded")) as root:  # fmt: skip
        body = {"model": "toy", "messages": [{"role": "user", "content": question}]}
        with leaves(root, "/v1/chat/completions", body):
            until(lambda: seen == ["waits"])
        until(lambda: bool(told.ended))
    assert seen == ["waits", "cancelled"]
    assert [one.ended for one in told.ended] == ["left"]
    assert gateway.running == 0


def test_a_client_that_leaves_mid_stream_is_told_as_left(upstream: str, question: str) -> None:
    told = Told()
    gateway = gateway_of(StopsAt(10**6))
    gateway.steering.append(told.part())
    with serving_gateway(gateway, partial(look_at, upstream, gateway.settings,
                                          tokenizer="embedded")) as root:  # fmt: skip
        body = {"model": "toy", "messages": [{"role": "user", "content": question}],
                "stream": True}  # fmt: skip
        with httpx.stream("POST", f"{root}/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
    assert [(one.ended, one.status) for one in told.ended] == [("left", 499)]


def test_a_part_has_routes_behind_the_key_and_runs_with_the_gateway(upstream: str) -> None:
    state: list[str] = []

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        state.append("in")
        yield
        state.append("out")

    async def hello(http: HttpRequest) -> Response:
        return JSONResponse({"hello": http.path_params["name"]})

    gateway = gateway_of(StopsAt(24), keys=digests_of("sk-right"))
    gateway.steering.append(
        Steering("hello", routes=[Extra("/v1/rlbudget/hello/{name}", hello)], running=running)
    )
    with serving_gateway(gateway, partial(look_at, upstream, gateway.settings,
                                          tokenizer="embedded")) as root:  # fmt: skip
        assert state == ["in"]
        url = f"{root}/v1/rlbudget/hello/you"
        assert httpx.get(url).status_code == 401
        shown = httpx.get(url, headers={"authorization": "Bearer sk-right"})
        assert shown.json() == {"hello": "you"}
    assert state == ["in", "out"]
