"""Price and queue in a gateway: what a client sees of them."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from clients import leaves, until
from gateways import StopsAt, gateway_of, serving_gateway

from rlbudget.models import load_model
from rlbudget.serve.parts import add_parts
from rlbudget.serve.price.control import alarmed
from rlbudget.serve.upstream import look_at
from rlbudget.strategies.feedback.log import Feedback, now
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.online import PriceSettings, QueueClass, QueueSettings
from rlbudget.strategies.plan import Plan
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


def plan_with(**more: Any) -> Plan:
    return Plan({"p": StopsAt(24)}, **more)


def test_a_budget_moves_the_price_of_those_who_name_none(upstream: str, question: str) -> None:
    gateway = gateway_of(plan_with(price=PriceSettings("token-budget", 1.0, window=50)))
    _, control = add_parts(gateway)
    assert control is not None
    begun = control.price
    opens = partial(look_at, upstream, gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        prices = [chat(root, question).json()["rlbudget"]["token_price"] for _ in range(4)]
        named = chat(root, question, rlbudget={"token_price": 2e-5}).json()["rlbudget"]
        shown = httpx.get(f"{root}/metrics", timeout=60).text
    assert prices[0] == pytest.approx(begun)
    assert sorted(set(prices)) == prices
    assert named["token_price"] == 2e-5
    assert "rlbudget_token_price " in shown


def test_after_an_alarm_nothing_is_cut_and_the_client_is_told(upstream: str, question: str) -> None:
    settings = PriceSettings("em-floor", 0.9, window=50, feedback=True)
    gateway = gateway_of(plan_with(price=settings))
    _, control = add_parts(gateway)
    assert control is not None
    opens = partial(look_at, upstream, gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        cut = chat(root, question, rlbudget={"request_id": "r1"}).json()["rlbudget"]
        control.told(Feedback("r1", now(), right=True))
        control.told(Feedback("r1", now(), right=True))  # is not counted twice
        control.state = alarmed(settings, control.state, "a test")
        whole = chat(root, question).json()["rlbudget"]
    assert cut["stopped"]
    assert not whole["stopped"]
    assert whole["shadow"]["thinking_tokens"] == cut["thinking_tokens"]
    assert "alarm" in whole["fallback"]
    assert control.state.estimate.right.weight == 1
    assert control.state.full_left == settings.window // 2 - 1
    assert control.state.tokens < whole["thinking_tokens"] + whole["answer_tokens"]


def test_a_predictor_tells_what_is_known_before_any_verdict(upstream: str, question: str) -> None:
    features = StopsAt.features
    n = len(features)
    model = ImpactModel(features, np.zeros(n), np.ones(n), (np.zeros((n, 1)),), (np.zeros(1),))
    settings = PriceSettings("em-floor", 0.9, window=50, feedback=True, predictor=model)
    gateway = gateway_of(plan_with(price=settings))
    _, control = add_parts(gateway)
    assert control is not None
    opens = partial(look_at, upstream, gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        prices = [chat(root, question).json()["rlbudget"]["token_price"] for _ in range(3)]
    assert control.exact_match == pytest.approx(0.5)
    assert prices == sorted(prices, reverse=True)
    assert prices[2] < prices[0]


def test_a_queue_serves_by_class_refuses_with_429_and_forgets_who_left(
    upstream: str, question: str
) -> None:
    classes = {"critical": QueueClass(priority=-100.0, price_factor=0.5),
               "bulk": QueueClass(priority=0.0)}  # fmt: skip
    settings = QueueSettings(1, classes, "bulk", waiting=2)
    gateway = gateway_of(plan_with(queue=settings))
    queue, _ = add_parts(gateway)
    assert queue is not None
    opens = partial(look_at, upstream, gateway.settings, tokenizer="embedded")

    with serving_gateway(gateway, opens) as root, concurrent.futures.ThreadPoolExecutor() as pool:
        first, _, _ = queue.turnstile.arrive("bulk", 0.0)  # somebody is being served
        waits = pool.submit(chat, root, question)
        until(lambda: queue.turnstile.waiting["bulk"] == 1)
        body = {"model": "toy", "messages": [{"role": "user", "content": "1"}]}
        with leaves(root, "/v1/chat/completions", body):
            until(lambda: queue.turnstile.waiting["bulk"] == 2)
        until(lambda: queue.turnstile.waiting["bulk"] == 1)
        late = pool.submit(chat, root, question)
        until(lambda: queue.turnstile.waiting["bulk"] == 2)
        urgent = pool.submit(chat, root, question, rlbudget={"priority": "critical"})
        refused = late.result(timeout=60)
        unknown = chat(root, question, rlbudget={"priority": "urgent"})
        shown = httpx.get(f"{root}/metrics", timeout=60).text
        queue._call(queue.turnstile.end(first, 0.1))
        urgent_answer, answer = urgent.result(timeout=60), waits.result(timeout=60)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert unknown.status_code == 400
    assert "critical, bulk" in unknown.json()["error"]["message"]
    assert 'rlbudget_queue_waiting{priority="critical"} 1.0' in shown
    ours = urgent_answer.json()["rlbudget"]
    assert ours["priority"] == "critical"
    assert ours["token_price"] == pytest.approx(answer.json()["rlbudget"]["token_price"] / 2)
    assert ours["queued_seconds"] <= answer.json()["rlbudget"]["queued_seconds"]
    assert queue.turnstile.running == {"critical": 0, "bulk": 0}
    assert queue.refused["bulk"] == 1


def test_a_minute_that_spends_too_much_is_dearer_but_not_for_the_exempt(
    upstream: str, question: str
) -> None:
    classes = {"critical": QueueClass(exempt=True), "bulk": QueueClass(priority=1.0)}
    gateway = gateway_of(plan_with(queue=QueueSettings(4, classes, "bulk", tokens_per_minute=1)))
    queue, _ = add_parts(gateway)
    assert queue is not None
    opens = partial(look_at, upstream, gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        bulk = [chat(root, question).json()["rlbudget"]["token_price"] for _ in range(3)]
        queue.minute = replace(queue.minute, log_factor=1.0)
        dear = chat(root, question).json()["rlbudget"]["token_price"]
        asked = {"priority": "critical"}
        exempt = chat(root, question, rlbudget=asked).json()["rlbudget"]["token_price"]
    assert dear > bulk[0]
    assert exempt == pytest.approx(bulk[0])
