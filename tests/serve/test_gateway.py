"""The gateway over loopback: in front of a server of the embedded model, and with it inside."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import orjson
import pytest
import torch
from clients import leaves, until
from gateways import Echo, StopsAt, gateway_of, serving_gateway

from rlbudget.decoding.decode import decode
from rlbudget.integrations import openai
from rlbudget.models import load_model
from rlbudget.models.site import find_site
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.models.wire import open_endpoint
from rlbudget.policy.network import Decision
from rlbudget.policy.stop_policy import Full
from rlbudget.serve import pool
from rlbudget.serve.keys import digests_of
from rlbudget.serve.local import load
from rlbudget.serve.upstream import look_at
from rlbudget.tasks import load_task
from runs.integrations.llama_process import free_port
from runs.integrations.toy_server import Toy, running, serving

torch.set_num_threads(1)

STOP = 56


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [q.question for q in load_task("embedded", n=12, seed=3).questions]


@pytest.fixture(scope="module")
def toy(model: TransformersModel) -> Iterator[tuple[Toy, str]]:
    server = Toy(model)
    with serving(server) as url:
        yield server, url


@pytest.fixture(scope="module")
def served(toy: tuple[Toy, str], model: TransformersModel) -> Iterator[str]:
    gateway = gateway_of(StopsAt(STOP), never=StopsAt(10**6))
    opens = partial(look_at, toy[1], gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        yield root


def metrics_of(root: str) -> str:
    return httpx.get(f"{root}/metrics", timeout=60).text


def chat(root: str, question: str, **more: Any) -> httpx.Response:
    body = {"model": "toy", "messages": [{"role": "user", "content": question}],
            "temperature": 0.0, **more}  # fmt: skip
    return httpx.post(f"{root}/v1/chat/completions", json=body, timeout=60)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [orjson.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_chat_is_stopped_where_a_decode_by_our_client_is(
    served: str, toy: tuple[Toy, str], questions: list[str]
) -> None:
    async def own() -> list[Any]:
        async with openai.connect(toy[1], StopsAt(STOP), "embedded", profile="embedded") as server:
            return [await openai.decode(server, q, temperature=0.0) for q in questions]

    expected = asyncio.run(own())
    assert {one.stopped for one in expected} == {True, False}
    for question, wanted in zip(questions, expected, strict=True):
        found = chat(served, question).json()
        ours, message = found["rlbudget"], found["choices"][0]["message"]
        assert ours["thinking_tokens"] == wanted.thinking_tokens
        assert (ours["reason"], ours["stopped"]) == (wanted.reason, wanted.stopped)
        assert message["content"].strip() == wanted.answer
        shown = f"{message['reasoning_content']}</think>"
        assert wanted.text.startswith(shown)
        assert message["reasoning"] == message["reasoning_content"]
        assert found["choices"][0]["finish_reason"] == "stop"
        spent = found["usage"]["completion_tokens"]
        assert spent == wanted.own_tokens
        details = found["usage"]["completion_tokens_details"]
        assert details["reasoning_tokens"] == wanted.thinking_tokens + wanted.probe_tokens


def test_a_stream_says_the_same_as_a_whole_answer(served: str, questions: list[str]) -> None:
    for question in questions[:6]:
        whole = chat(served, question).json()
        said = events(chat(served, question, stream=True, stream_options={"include_usage": True}))
        deltas = [event["choices"][0]["delta"] for event in said if event["choices"]]
        message = whole["choices"][0]["message"]
        for name in ("content", "reasoning_content"):
            assert "".join(d.get(name) or "" for d in deltas) == message[name]
        assert deltas[0]["role"] == "assistant"
        assert len({event["id"] for event in said}) == 1
        assert said[-2]["choices"][0]["finish_reason"] == "stop"
        shown = [{**one["rlbudget"], "request_id": ""} for one in (said[-2], whole)]
        assert shown[0] == shown[1]
        assert said[-1]["usage"] == whole["usage"]
        assert said[-1]["choices"] == []


def test_a_model_inside_decodes_as_decode_does(
    model: TransformersModel, questions: list[str]
) -> None:
    gateway = gateway_of(StopsAt(32))
    with serving_gateway(gateway, partial(load, "embedded", gateway.settings)) as root:
        for question in questions[:6]:
            wanted = decode(model, question, StopsAt(32), temperature=0.0, seed=5)
            found = chat(root, question, model="embedded", seed=5).json()
            message = found["choices"][0]["message"]
            assert found["rlbudget"]["thinking_tokens"] == wanted.thinking_tokens
            assert found["rlbudget"]["reason"] == wanted.reason
            assert message["content"].strip() == wanted.answer
            assert wanted.text.startswith(message["reasoning_content"] + "</think>")


def test_with_the_policy_off_a_model_inside_thinks_to_its_own_end(
    model: TransformersModel, questions: list[str]
) -> None:
    gateway = gateway_of(StopsAt(32))
    with serving_gateway(gateway, partial(load, "embedded", gateway.settings)) as root:
        for question in questions[:6]:
            wanted = decode(model, question, Full(), temperature=0.0, seed=5)
            found = chat(root, question, seed=5, rlbudget={"off": True}).json()
            ours, message = found["rlbudget"], found["choices"][0]["message"]
            assert (ours["off"], ours["stopped"]) == (True, False)
            assert ours["thinking_tokens"] == wanted.thinking_tokens
            assert message["content"].strip() == wanted.answer
        assert chat(root, "1+1", temperature="hot", rlbudget={"off": True}).status_code == 400


def test_an_answer_goes_to_its_own_end_or_to_the_clients_limit(
    served: str, questions: list[str]
) -> None:
    stopped = next(q for q in questions if chat(served, q).json()["rlbudget"]["stopped"])
    full = chat(served, stopped).json()
    spent = full["usage"]["completion_tokens"]
    assert chat(served, stopped, max_tokens=spent + 40).json()["choices"] == full["choices"]
    short = chat(served, stopped, max_tokens=34).json()
    assert short["usage"]["completion_tokens"] <= 34


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rlbudget": {"token_price": -1}}, "token price"),
        ({"rlbudget": {"token_price": "x"}}, "token_price"),
        ({"rlbudget": {"policy": "other"}}, "no policy 'other'"),
        ({"rlbudget": {"effort": "huge"}}, "effort"),
        ({"rlbudget": {"nonsense": 1}}, "no field 'nonsense'"),
        ({"rlbudget": 3}, "an object"),
        ({"thinking_token_budget": 1.5}, "thinking_token_budget"),
        ({"thinking_token_budget": -7}, "thinking_token_budget"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, "messages.0"),
        ({"temperature": "warm"}, "temperature"),
        ({"stream": 1}, "stream"),
    ],
)
def test_a_wrong_request_is_one_error_in_openais_form(
    served: str, more: dict[str, Any], said: str
) -> None:
    response = chat(served, "1+1", **more)
    error = response.json()["error"]
    assert response.status_code == 400
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(served: str, content: bytes) -> None:
    response = httpx.post(f"{served}/v1/chat/completions", content=content)
    assert response.status_code == 400
    assert "error" in response.json()


def test_a_body_beyond_the_limit_is_refused(served: str) -> None:
    response = httpx.post(f"{served}/v1/chat/completions", content=b" " * (5 << 20))
    assert response.status_code == 413
    assert "bytes" in response.json()["error"]["message"]


def test_a_budget_by_any_of_its_names_caps_the_thinking(served: str, questions: list[str]) -> None:
    question = next(
        q for q in questions if chat(served, q).json()["rlbudget"]["thinking_tokens"] >= 16
    )
    ways: list[dict[str, Any]] = [
        {"thinking_token_budget": 12},
        {"thinking_budget": 12},
        {"reasoning_budget": 12},
        {"thinking": {"type": "enabled", "budget_tokens": 12}},
        {"rlbudget": {"thinking_budget": 12}},
    ]
    for more in ways:
        ours = chat(served, question, **more).json()["rlbudget"]
        assert (ours["thinking_tokens"], ours["reason"]) == (12, "max_tokens")
    none = chat(served, question, thinking_budget=0).json()
    assert none["rlbudget"]["thinking_tokens"] == 0
    assert none["choices"][0]["message"]["content"]


def test_headers_steer_a_client_that_cannot_set_a_body(served: str, questions: list[str]) -> None:
    body = {"model": "toy", "messages": [{"role": "user", "content": questions[0]}]}
    response = httpx.post(
        f"{served}/v1/chat/completions", json=body,
        headers={"x-rlbudget-token-price": "0.005", "x-rlbudget-thinking-budget": "8"},
    )  # fmt: skip
    ours = response.json()["rlbudget"]
    assert ours["token_price"] == 0.005
    assert ours["thinking_tokens"] <= 8
    assert response.headers["x-rlbudget-token-price"] == "0.005"
    assert response.headers["x-rlbudget-policy"] == "default"
    wrong = httpx.post(
        f"{served}/v1/chat/completions", json=body, headers={"x-rlbudget-token-price": "much"}
    )
    assert wrong.status_code == 400
    assert "token-price" in wrong.json()["error"]["message"]


def test_an_effort_that_the_policy_does_not_price_is_told_and_costs_no_answer(
    served: str, questions: list[str]
) -> None:
    found = chat(served, questions[0], reasoning_effort="medium").json()
    assert found["choices"][0]["message"]["content"]
    assert "reasoning_effort" in found["rlbudget"]["not_honoured"][0]
    assert chat(served, questions[0], rlbudget={"effort": "medium"}).status_code == 400


def test_what_was_honoured_is_echoed_and_what_was_not_is_told(
    served: str, questions: list[str]
) -> None:
    found = chat(served, questions[0], thinking_budget=20, service_tier="flex", verbosity="medium",
                 rlbudget={"policy": "never", "request_id": "r7"}).json()  # fmt: skip
    ours = found["rlbudget"]
    assert (ours["thinking_budget"], ours["policy"], ours["request_id"]) == (20, "never", "r7")
    (told,) = ours["not_honoured"]
    assert told.startswith("service_tier")


def test_keys_are_asked_for_and_never_shown(toy: tuple[Toy, str]) -> None:
    gateway = gateway_of(StopsAt(24), keys=digests_of("sk-right, sk-other"))
    opens = partial(look_at, toy[1], gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        url = f"{root}/v1/models"
        assert httpx.get(url, headers={"authorization": "Bearer sk-right"}).status_code == 200
        for given in ({}, {"authorization": "Bearer sk-wrong"}, {"authorization": "sk-right"}):
            response = httpx.get(url, headers=given)
            assert response.status_code == 401
            assert "sk-" not in response.text
        assert httpx.get(f"{root}/healthz", timeout=60).status_code == 200


@asynccontextmanager
async def passing(root: str, backend: Any) -> Any:
    yield backend


def test_what_is_not_steered_passes_through_as_it_is(toy: tuple[Toy, str]) -> None:
    echo = Echo()
    gateway = gateway_of(StopsAt(24))
    with running(echo.app()) as upstream:

        @asynccontextmanager
        async def opened() -> Any:
            async with look_at(toy[1], gateway.settings, tokenizer="embedded") as backend:
                site = find_site(upstream.removesuffix("/v1"), None, "")
                async with open_endpoint(site, retries=0, timeout=60, deadline=60) as root:
                    yield replace(backend, root=root)

        with serving_gateway(gateway, opened) as root:
            body = {"model": "toy", "messages": [{"role": "user", "content": "1+1"}],
                    "tools": [{"type": "function"}], "unknown": {"deep": [1]}}  # fmt: skip
            found = httpx.post(f"{root}/v1/chat/completions", json=body,
                               headers={"authorization": "Bearer secret"})  # fmt: skip
            assert found.status_code == 207
            assert found.headers["x-upstream"] == "echo"
            assert found.headers["x-rlbudget-passed-through"] == "tools"
            assert orjson.loads(found.json()["body"]) == body
            assert "authorization" not in echo.asked[-1][2]
            off = {**body, "tools": None, "rlbudget": {"off": True}, "stream": True}
            said = httpx.post(f"{root}/v1/chat/completions", json=off)
            assert said.text.count("data: ") == 4
            assert said.headers["x-rlbudget-passed-through"] == "off"
            assert "rlbudget" not in orjson.loads(echo.asked[-1][3])
            other = httpx.post(f"{root}/v1/responses?a=1", content=b"anything")
            assert other.json() == {"method": "POST", "path": "/v1/responses", "query": "a=1",
                                    "body": "anything"}  # fmt: skip
            counted = httpx.get(f"{root}/metrics", timeout=60).text
            assert 'rlbudget_passed_through_total{why="tools"} 1.0' in counted


def test_an_upstream_that_cannot_be_reached_is_an_error_of_the_gateway(
    model: TransformersModel, questions: list[str]
) -> None:
    server = Toy(model)
    gateway = gateway_of(StopsAt(24))
    with serving(server) as url:
        opens = partial(look_at, url, gateway.settings, tokenizer="embedded", retries=1)
        with serving_gateway(gateway, opens) as root:
            assert chat(root, questions[0]).status_code == 200
            assert httpx.get(f"{root}/readyz", timeout=60).status_code == 200
            server.cuts = [3, 5]  # broken off mid-thought: it goes on from there
            assert chat(root, questions[1]).status_code in (200, 502)
            server.cuts = [0] * 9
            broken = chat(root, questions[0])
            assert broken.status_code == 502
            assert broken.json()["error"]["type"] == "server_error"


def test_a_stream_broken_off_mid_thought_goes_on_as_if_nothing_had_happened(
    toy: tuple[Toy, str], served: str, questions: list[str]
) -> None:
    expected = chat(served, questions[2]).json()
    toy[0].cuts = [5, 7]
    found = chat(served, questions[2]).json()
    assert found["choices"] == expected["choices"]
    assert found["rlbudget"]["thinking_tokens"] == expected["rlbudget"]["thinking_tokens"]


class FirstTokens:
    """A lock of the toy server that so many tokens pass, and the others once they may."""

    def __init__(self, tokens: int) -> None:
        self.left, self.others = tokens, threading.Event()

    def __enter__(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.others.wait(240)

    def __exit__(self, *_: object) -> None: ...


def test_a_client_that_leaves_frees_the_upstream(
    toy: tuple[Toy, str], served: str, questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = {"rlbudget": {"policy": "never"}, "temperature": 0.0}
    spent = {q: chat(served, q, **never).json()["usage"]["completion_tokens"] for q in questions}
    longest = max(spent, key=lambda q: spent[q])
    body = {"model": "toy", "messages": [{"role": "user", "content": longest}], "stream": True}
    before, first = toy[0].generated, FirstTokens(spent[longest] // 2)
    monkeypatch.setattr(toy[0], "lock", first)
    with httpx.stream("POST", f"{served}/v1/chat/completions", json=body | never) as response:
        next(response.iter_lines())
    until(lambda: 'rlbudget_requests_total{ended="left",way="steered"} 1.0' in metrics_of(served))
    first.others.set()
    time.sleep(0.5)  # more than the others would take
    assert 0 < toy[0].generated - before < spent[longest] * 0.8


def test_a_client_that_leaves_before_the_first_text_is_noticed_at_once(
    toy: tuple[Toy, str], served: str, questions: list[str]
) -> None:
    body = {"model": "toy", "messages": [{"role": "user", "content": questions[0]}], "stream": True}
    left = 'rlbudget_requests_total{ended="left",way="steered"}'

    def counted() -> float:
        lines = [one for one in metrics_of(served).splitlines() if one.startswith(left)]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    before = counted()
    with toy[0].lock:  # nothing is decoded
        with leaves(served, "/v1/chat/completions", body):
            until(lambda: "rlbudget_requests_running 1.0" in metrics_of(served))
        until(lambda: counted() > before)
        assert counted() == before + 1
        assert "rlbudget_requests_running 0.0" in metrics_of(served)
    assert chat(served, questions[0]).status_code == 200


def test_two_servers_of_a_model_share_it_and_a_sick_one_is_left_out(
    model: TransformersModel, questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_PAUSES", (600.0,))  # a busy machine may take longer than the first
    first, second = Toy(model), Toy(model)
    gateway = gateway_of(StopsAt(STOP))
    with serving(first) as one, serving(second) as other:
        opens = [
            partial(look_at, url, gateway.settings, tokenizer="embedded", retries=0)
            for url in (one, other)
        ]
        with serving_gateway(gateway, *opens) as root:
            looked = [len(first.requests), len(second.requests)]
            first.cuts = [0] * 50
            for question in questions[:4]:
                assert chat(root, question).status_code == 200
            tried = len(first.requests) - looked[0]
            assert tried == 1  # and was left out from then on
            assert len(second.requests) - looked[1] >= 4
            second.cuts = [0] * 50
            assert chat(root, questions[0]).status_code == 502
            first.cuts = second.cuts = []
            assert chat(root, questions[0]).status_code == 200


def test_an_upstream_that_comes_later_is_found(
    model: TransformersModel, toy: tuple[Toy, str], questions: list[str]
) -> None:
    port = free_port()
    gateway = gateway_of(StopsAt(STOP))
    opens = [
        partial(look_at, url, gateway.settings, tokenizer="embedded", retries=0)
        for url in (f"http://127.0.0.1:{port}/v1", toy[1])
    ]
    with serving_gateway(gateway, *opens) as root:
        assert chat(root, questions[0]).status_code == 200
        late = Toy(model)
        with serving(late, port=port):
            until(lambda: len(gateway.backends["toy"].members) == 2)


def test_the_policies_faults_cost_no_answer(toy: tuple[Toy, str], questions: list[str]) -> None:
    class Breaks(StopsAt):
        def __call__(self, observation: Any, *, token_price: float) -> Decision:
            raise RuntimeError("no such thing")

    gateway = gateway_of(Breaks(8))
    opens = partial(look_at, toy[1], gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        found = chat(root, questions[0]).json()
        assert found["choices"][0]["message"]["content"]
        assert found["rlbudget"]["reason"] == "policy_failed"
        assert "rlbudget_policy_failures 1.0" in httpx.get(f"{root}/metrics", timeout=60).text


def test_in_shadow_nothing_is_cut_and_what_would_have_been_is_told(
    toy: tuple[Toy, str], served: str, questions: list[str]
) -> None:
    gateway = gateway_of(StopsAt(STOP), shadow=True)
    opens = partial(look_at, toy[1], gateway.settings, tokenizer="embedded")
    never = {"rlbudget": {"policy": "never"}}
    with serving_gateway(gateway, opens) as root:
        cut = 0
        for question in questions[:8]:
            found, full = chat(root, question).json(), chat(served, question, **never).json()
            stopped = chat(served, question).json()
            assert found["choices"] == full["choices"]
            assert found["rlbudget"]["stopped"] is False
            shadow = found["rlbudget"].get("shadow")
            assert (shadow is not None) == stopped["rlbudget"]["stopped"]
            if shadow is not None:
                cut += 1
                said = stopped["choices"][0]["message"]["content"].strip()
                whole = full["choices"][0]["message"]["content"].strip()
                assert shadow["thinking_tokens"] == STOP
                assert shadow["answer"] == said
                assert shadow["same_answer"] == (said == whole)
                full_thinking = full["rlbudget"]["thinking_tokens"]
                assert shadow["saved_tokens"] == full_thinking - STOP
        assert cut
        counted = metrics_of(root)
        assert "rlbudget_shadow_total" in counted
    streamed = events(chat(served, questions[0], stream=True))
    assert "shadow" not in streamed[-1]["rlbudget"]


def test_text_completions_are_steered_too(served: str, questions: list[str]) -> None:
    body = {"model": "toy", "prompt": f"<bos>{questions[0]}\n<think>", "temperature": 0.0}
    found = httpx.post(f"{served}/v1/completions", json=body, timeout=60).json()
    assert found["object"] == "text_completion"
    assert found["rlbudget"]["thinking_tokens"] <= STOP
    assert found["choices"][0]["text"]
