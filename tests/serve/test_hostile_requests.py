"""Requests that no client should send: each is one error in OpenAI's form, and no harm is done."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import orjson
import pytest
import torch
from gateways import Echo, StopsAt, gateway_of, serving_gateway

from rlbudget.models import load_model
from rlbudget.models.site import find_site
from rlbudget.models.wire import open_endpoint
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.incoming import Limits
from rlbudget.serve.local import load
from rlbudget.serve.upstream import look_at
from runs.integrations.toy_server import Toy, running, serving

torch.set_num_threads(1)

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = [{"role": "user", "content": "1+1"}]
OF = {CHAT: {"messages": ASKED}, TEXT: {"prompt": "1+1"}}


@pytest.fixture(scope="module")
def toy() -> Iterator[str]:
    with serving(Toy(load_model("embedded"))) as url:
        yield url


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def inside() -> Iterator[str]:
    """A gateway with the model inside."""
    gateway = gateway_of(StopsAt(16))
    with serving_gateway(gateway, partial(load, "embedded", gateway.settings)) as root:
        yield root


@pytest.fixture(scope="module")
def before(toy: str, echo: Echo) -> Iterator[str]:
    """One before the toy server; what passes through goes to ``echo``."""
    gateway = gateway_of(StopsAt(16))
    gateway.limits = Limits(upload=1.0)
    with before_of(toy, echo, gateway, "embedded") as root:
        yield root


@contextmanager
def before_of(toy: str, echo: Echo, gateway: Gateway, tokenizer: Any) -> Iterator[str]:
    with running(echo.app()) as upstream:

        @asynccontextmanager
        async def opened() -> Any:
            async with look_at(toy, gateway.settings, tokenizer=tokenizer) as backend:
                site = find_site(upstream.removesuffix("/v1"), None, "")
                async with open_endpoint(site, retries=0, timeout=60, deadline=60) as root:
                    yield replace(backend, root=root)

        with serving_gateway(gateway, opened) as root:
            yield root


def refused(response: httpx.Response) -> str:
    """The error's message; every refusal has OpenAI's form."""
    assert 400 <= response.status_code < 500, response.text[:500]
    error = response.json()["error"]
    assert {*error} == {"message", "type", "param", "code"}
    assert error["code"] == response.status_code
    message: str = error["message"]
    assert message
    assert "\n" not in message
    assert len(message) < 1100
    return message


def message(content: Any, role: Any = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, message(7), "messages.0.content"),
    (CHAT, message({"text": "1+1"}), "messages.0.content"),
    (CHAT, message(["1+1"]), "messages.0.content.0"),
    (CHAT, message([{"text": "1+1"}]), "messages.0.content.0"),
    (CHAT, message([{"type": 1, "text": "1+1"}]), "messages.0.content.0"),
    (CHAT, message([{"type": "text"}]), "messages.0.content.0.text"),
    (CHAT, message([{"type": "text", "text": None}]), "messages.0.content.0.text"),
    (CHAT, message([{"type": "text", "text": ["1"]}]), "messages.0.content.0.text"),
    (CHAT, message("1+1", role=7), "messages.0"),
    (CHAT, message("1+1", role=None), "messages.0"),
    (CHAT, {"messages": {"role": "user"}}, "messages"),
    (CHAT, {"messages": [None]}, "messages.0"),
    (CHAT, {"model": 7}, "model"),
    (CHAT, {"model": None}, "model"),
    (CHAT, {"max_tokens": -1}, "max_tokens"),
    (CHAT, {"max_tokens": 1e300}, "max_tokens"),
    (CHAT, {"max_tokens": True}, "max_tokens"),
    (CHAT, {"max_completion_tokens": [9]}, "max_completion_tokens"),
    (CHAT, {"n": 0}, "n"),
    (CHAT, {"temperature": -1}, "temperature"),
    (CHAT, {"temperature": [1]}, "temperature"),
    (CHAT, {"temperature": True}, "temperature"),
    (CHAT, {"top_p": "x"}, "top_p"),
    (CHAT, {"seed": "x"}, "seed"),
    (CHAT, {"seed": 1.5}, "seed"),
    (CHAT, {"seed": [1]}, "seed"),
    (CHAT, {"stream": "yes"}, "stream"),
    (CHAT, {"stream_options": [True]}, "stream_options"),
    (CHAT, {"stream_options": "include_usage"}, "stream_options"),
    (CHAT, {"chat_template_kwargs": [1]}, "chat_template_kwargs"),
    (CHAT, {"reasoning_effort": 3}, "reasoning_effort"),
    (CHAT, {"thinking": {"budget_tokens": "x"}}, "budget_tokens"),
    (CHAT, {"thinking_budget": float(1 << 70)}, "thinking_budget"),
    (CHAT, {"rlbudget": {"token_price": -1e300}}, "token price"),
    (CHAT, {"rlbudget": {"token_price": 1e300}}, "token_price"),
    (CHAT, {"rlbudget": {"max_em_loss": 2}}, "max em loss"),
    (CHAT, {"rlbudget": {"answer_worth": 1}}, "go together"),
    (CHAT, {"rlbudget": {"answer_worth": -1, "price_per_million": 1}}, "answer worth"),
    (CHAT, {"rlbudget": {"metadata": [1]}}, "metadata"),
    (CHAT, {"rlbudget": {"policy": "x" * 100_000}}, "policy"),
    (CHAT, {"rlbudget": {"x" * 100_000: 1}}, "no field"),
    (CHAT, {"rlbudget": {"request_id": "a\nb"}}, "request_id"),
    (CHAT, {"rlbudget": {"off": "maybe"}}, "off"),
    (TEXT, {"prompt": None}, "prompt"),
    (TEXT, {"prompt": 7}, "prompt"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [1, -1]}, "prompt"),
    (TEXT, {"messages": 7}, "messages"),
]  # fmt: skip


@pytest.mark.parametrize("way", ["inside", "before"])
@pytest.mark.parametrize(("path", "more", "said"), WRONG)
def test_a_field_of_the_wrong_kind_is_named(
    request: pytest.FixtureRequest, way: str, path: str, more: dict[str, Any], said: str
) -> None:
    root = request.getfixturevalue(way)
    body = {"model": "toy", **OF[path], **more}
    for stream in ({}, {"stream": True}):
        response = httpx.post(f"{root}{path}", json={**stream, **body}, timeout=60)
        assert said in refused(response)


RAW = [
    b'{"model": "toy", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "toy", "messages": [{"role": "user", "content": "\xff"}]}',
    b'{"model": "toy", "temperature": NaN, "messages": [{"role": "user", "content": "1"}]}',
    b'{"model": "toy", "temperature": 1e999, "messages": [{"role": "user", "content": "1"}]}',
    b'{"model": "toy", "messages": [{"role": "user", "content": "1"}], "x": %b}'
    % (b"[" * 300 + b"]" * 300),
    b'{"model": "toy", "tools": %b, "messages": [{"role": "user", "content": "1"}]}'
    % (b'[{"a":' * 300 + b"1" + b"}]" * 300),
    b'{"model": "toy", "rlbudget": {"metadata": {"a": %b}}, "messages": [%b]}'
    % (b"[" * 300 + b"]" * 300, b'{"role": "user", "content": "1"}'),
]


@pytest.mark.parametrize("way", ["inside", "before"])
@pytest.mark.parametrize("content", RAW)
def test_a_body_that_is_no_proper_json_is_refused(
    request: pytest.FixtureRequest, way: str, content: bytes
) -> None:
    root = request.getfixturevalue(way)
    refused(httpx.post(f"{root}{CHAT}", content=content, timeout=60))


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("token-price", "nan"), ("token-price", "inf"), ("token-price", "-1"),
        ("token-price", "\xff"), ("thinking-budget", "1.5"), ("thinking-budget", "-4"),
        ("off", "2"), ("metadata", "{"), ("metadata", "[1]"), ("nonsense", "1"),
        ("user", "x" * 5000), ("effort", "huge"), ("price-per-million", "1"),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_read_is_named(before: str, header: str, value: str) -> None:
    asked = orjson.dumps({"model": "toy", "messages": ASKED})
    headers = [(f"x-rlbudget-{header}".encode(), value.encode("latin-1"))]
    refused(httpx.post(f"{before}{CHAT}", content=asked, headers=headers, timeout=60))


@pytest.mark.parametrize(
    "more",
    [
        {"seed": 2**64 - 1}, {"max_tokens": 2**63 - 1}, {"temperature": 1e-300},
        {"temperature": 1e300}, {"messages": [{"role": "user", "content": "\0"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": "\U0010ffff\u202e<think></think>"}]},
        {"rlbudget": {"thinking_budget": 2**64 - 1}}, {"reasoning_effort": "x" * 100_000},
        {"rlbudget": {"answer_worth": 1e-300, "price_per_million": 1e300}},
        {"rlbudget": {"user": {"deep": [None]}, "priority": 1e308}},
        {"stop": []}, {"stream_options": {"include_usage": "maybe"}}, {"user": 7},
    ],
)  # fmt: skip
def test_an_odd_request_that_can_be_answered_is_answered(
    inside: str, before: str, more: dict[str, Any]
) -> None:
    for root in (inside, before):
        body = {"model": "toy", "messages": ASKED, **more}
        response = httpx.post(f"{root}{CHAT}", json=body, timeout=60)
        assert response.status_code == 200, response.text[:500]
        assert "rlbudget" in response.json()
        assert len(response.content) < 20_000


def test_a_seed_below_0_is_a_seed(inside: str) -> None:
    body = {"model": "toy", "messages": ASKED, "seed": -1}
    assert httpx.post(f"{inside}{CHAT}", json=body, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {"tools": [{"type": "function"}]}),
        (CHAT, {"stop": ["x"]}),
        (CHAT, {"stop": 7}),
        (CHAT, {"response_format": 7}),
        (CHAT, {"logit_bias": {"1": 1}}),
        (CHAT, {"n": 2}),
        (CHAT, {"best_of": "x"}),
        (CHAT, {"max_tokens": 1}),
        (CHAT, {"messages": [*ASKED, *ASKED]}),
        (CHAT, {"messages": [{"role": "robot", "content": "1"}]}),
        (CHAT, {"messages": [{"role": "user"}]}),
        (CHAT, {"messages": [{"role": "user", "content": "1" * 100_000}]}),
        (TEXT, {"prompt": [1, 2]}),
        (TEXT, {"prompt": ["1", "2"]}),
        (TEXT, {"prompt": [10**9]}),
    ],
)
def test_what_the_model_inside_cannot_do_is_the_clients_mistake(
    inside: str, path: str, more: dict[str, Any]
) -> None:
    body = {"model": "toy", **OF[path], **more}
    refused(httpx.post(f"{inside}{path}", json=body, timeout=60))


@pytest.mark.parametrize(
    "more",
    [{"prompt": [10**9]}, {"prompt": [3, 2**63]}, {"prompt": ["1", "2"]}, {"prompt": [[1], "x"]}],
)
def test_a_prompt_that_the_tokenizer_lacks_is_the_upstreams_to_judge(
    before: str, echo: Echo, more: dict[str, Any]
) -> None:
    response = httpx.post(f"{before}{TEXT}", json={"model": "toy", **more}, timeout=60)
    assert response.status_code == 207
    assert orjson.loads(echo.asked[-1][3]) == {"model": "toy", **more}


@pytest.mark.parametrize(
    "more",
    [
        {"messages": []}, {"messages": "1+1"}, {"messages": [None]}, {"messages": [7]},
        {"messages": [{"role": 7}]}, {"messages": [{"role": "user", "content": 7}]}, {},
        {"messages": ASKED, "temperature": "hot"}, {"messages": ASKED, "max_tokens": 0},
        {"messages": ASKED, "stream": "yes"}, {"model": 7, "messages": ASKED},
    ],
)  # fmt: skip
def test_with_the_policy_off_every_shape_is_the_upstreams_to_judge(
    before: str, echo: Echo, more: dict[str, Any]
) -> None:
    body = {"model": "toy", **more}
    content = orjson.dumps(body)
    for path in (CHAT, TEXT):
        response = httpx.post(
            f"{before}{path}", content=content, headers={"x-rlbudget-off": "true"}, timeout=60
        )
        assert response.status_code == 207
        assert response.headers["x-rlbudget-passed-through"] == "off"
        assert echo.asked[-1][3] == content


def test_a_body_that_passes_through_is_not_written_again(before: str, echo: Echo) -> None:
    content = b'{"model":"toy", "messages":[{"role":"user","content":"1"}],"tools":[1e400, %d]}'
    content = content.replace(b"1e400", b"1.50") % 10**40
    assert httpx.post(f"{before}{CHAT}", content=content, timeout=60).status_code == 207
    assert echo.asked[-1][3] == content


def test_a_role_puts_no_header_into_the_answer(toy: str, echo: Echo) -> None:
    tokenizer = load_model("embedded").tokenizer
    shown = "{% for one in messages if one.role == 'user' %}{{ one.content }}{% endfor %}"
    tokenizer.chat_template = shown
    gateway = gateway_of(StopsAt(16))
    with before_of(toy, echo, gateway, tokenizer) as root:
        for role in ("x\r\nset-cookie: a=b", "\x00\x7f\u2028", "y" * 100_000):
            body = {"model": "toy", **message("1+1", role=role)}
            response = httpx.post(f"{root}{CHAT}", json=body, timeout=60)
            assert response.status_code == 207
            assert "set-cookie" not in response.headers
            why = response.headers["x-rlbudget-passed-through"]
            assert "does not show a message of the" in why
            assert why.isprintable()
        counted = httpx.get(f"{root}/metrics", timeout=60).text
        assert 'rlbudget_passed_through_total{why="cannot be steered"} 3.0' in counted


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "GET", "POST", "TRACE"])
@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/v2/x", "//v1/models", "/v1/models", "/v1/%0d%0ax:1", CHAT]
)
def test_an_address_that_is_not_served_is_refused_in_the_same_form(
    inside: str, method: str, path: str
) -> None:
    response = httpx.request(method, f"{inside}{path}", content=b"", timeout=60)
    if response.status_code == 200:
        assert (path, method) in {
            (path, method) for path in ("/healthz", "/v1/models") for method in ("GET", "HEAD")
        }
    elif method == "HEAD":
        assert response.status_code in (404, 405)
    else:
        refused(response)


def raw(root: str, sent: bytes) -> bytes:
    """What comes back for these bytes, to the end of the connection."""
    host, _, port = root.removeprefix("http://").partition(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(sent)
        while part := connection.recv(1 << 16):
            found += part
    return found


@pytest.mark.parametrize(
    "path",
    ["/v1/../metrics", "/v1/%2e%2e/metrics", "/v1/x/..%2f..%2fmetrics", "/v1/..%5cmetrics",
     "/v1/./x", "/v1/x/.."],
)  # fmt: skip
def test_no_path_leads_out_of_v1(before: str, echo: Echo, path: str) -> None:
    asked = len(echo.asked)
    sent = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    found = raw(before, sent.encode())
    assert found.startswith(b"HTTP/1.1 400")
    assert b'"invalid_request_error"' in found
    assert len(echo.asked) == asked


@pytest.mark.parametrize("path", ["/v1/files/a%20b", "/v1/a%3Fb%23c"])
def test_a_path_passes_as_it_was_spelled(before: str, echo: Echo, path: str) -> None:
    assert httpx.get(f"{before}{path}?a=1&a=2", timeout=60).status_code == 207
    assert echo.paths[-1] == (path, "a=1&a=2")


def test_a_body_that_does_not_come_is_not_waited_for(before: str) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n"
    begun = time.monotonic()
    found = raw(before, head.encode() + b'{"model":')
    assert found.startswith(b"HTTP/1.1 408")
    assert b'"message":"the body did not come within 1 s"' in found
    assert time.monotonic() - begun < 10


def test_a_client_brings_no_template_of_its_own(before: str, echo: Echo) -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    body = {"model": "toy", "messages": ASKED, "chat_template_kwargs": {"chat_template": loops}}
    assert httpx.post(f"{before}{CHAT}", json=body, timeout=60).status_code == 207
