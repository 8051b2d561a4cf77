"""Keys: known by digest, each within its limits, and never shown; a line a request in the log."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import uvicorn
from clients import until
from gateways import StopsAt, gateway_of, serving_gateway
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.serve.hooks import Arrival, Steering
from rlbudget.serve.journal import Journal, open_journal
from rlbudget.serve.keys import Key, Keyring, TooMuchError, digests_of, named, read_keys
from rlbudget.serve.savings import Savings
from rlbudget.serve.upstream import look_at
from rlbudget.serve.waits import PatientProtocol
from rlbudget.tasks import load_task
from runs.integrations.toy_server import Toy, serving

SECRET = "sk-very-secret"
DIGEST = sha256(SECRET.encode()).hexdigest()


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with serving(Toy(load_model("embedded"))) as url:
        yield url


@pytest.fixture(scope="module")
def question() -> str:
    return load_task("embedded", n=1, seed=3).questions[0].question


def chat(root: str, question: str, key: str | None = SECRET, **more: Any) -> httpx.Response:
    body = {"model": "toy", "messages": [{"role": "user", "content": question}],
            "temperature": 0.0, **more}  # fmt: skip
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.post(f"{root}/v1/chat/completions", json=body, headers=headers, timeout=60)


def keys_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_keys_file_holds_digests_and_limits(tmp_path: Path) -> None:
    file = keys_file(
        tmp_path / "keys.toml",
        f'[[key]]\nname = "a"\nsha256 = "{DIGEST.upper()}"\nrequests_per_minute = 60\n'
        'tokens_per_minute = 1e5\nconcurrent = 8\n[[key]]\nname = "b"\nsha256 = "' + "0" * 64 + '"',
    )
    first, second = read_keys(file)
    assert first == Key("a", DIGEST, 60, 1e5, 8)
    assert second == Key("b", "0" * 64)
    ring = Keyring([first, second])
    assert ring.find({"authorization": f"bearer {SECRET}"}) is first
    assert ring.find({"api-key": SECRET}) is first
    assert ring.find({"authorization": SECRET}) is None
    assert ring.find({}) is None
    with pytest.raises(UserError, match="stands in the keys file too"):
        named([first], digests_of(SECRET))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "name at least one"),
        ("[key]\nname='a'", "name at least one"),
        ("[other]\n", "unknown"),
        ("[[key]]\nkey = 'sk-plain'", ":1: a key itself"),
        ("[[key]]\nname = 'a'", "sha256"),
        (f"[[key]]\nname = 'a'\nsha256 = '{DIGEST[:-1]}'", "64"),
        (f"[[key]]\nname = ''\nsha256 = '{DIGEST}'", "name"),
        (f"[[key]]\nname = 'a'\nsha256 = '{DIGEST}'\nconcurrent = 0", "above 0"),
        (f"[[key]]\nname = 'a'\nsha256 = '{DIGEST}'\nconcurrent = 1.5", "whole"),
        (f"[[key]]\nname = 'a'\nsha256 = '{DIGEST}'\nrequests_per_minute = true", "above 0"),
        (f"[[key]]\nname = 'a'\nsha256 = '{DIGEST}'\nlimit = 3", "unknown"),
        (f"[[key]]\nname = 'a'\nsha256 = '{DIGEST}'\n" * 2, "two keys"),
    ],
)
def test_a_wrong_keys_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = keys_file(tmp_path / "keys.toml", text)
    with pytest.raises(UserError) as caught:
        read_keys(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)
    assert "sk-plain" not in str(caught.value)


def test_what_a_minute_allows_flows_in_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("rlbudget.serve.keys.time.monotonic", lambda: now)
    key = Key("a", DIGEST, requests_per_minute=6, tokens_per_minute=600)
    ring = Keyring([key])
    for _ in range(6):
        ring.enter(key)
    with pytest.raises(TooMuchError) as much:
        ring.enter(key)
    assert (much.value.limit, much.value.after) == ("requests_per_minute", 10.0)
    now += 60
    ring.enter(key)
    ring.spend("a", 1600)  # more than was left: it waits until the debt is paid
    with pytest.raises(TooMuchError) as much:
        ring.enter(key)
    assert much.value.limit == "tokens_per_minute"
    assert much.value.after == pytest.approx(100, rel=0.01)
    now += 101
    ring.enter(key)


def test_a_key_beyond_its_limits_gets_429_and_when_to_come_again(
    upstream: str, question: str
) -> None:
    keys = [Key("few", DIGEST, requests_per_minute=2),
            Key("short", sha256(b"sk-short").hexdigest(), tokens_per_minute=10),
            Key("free", sha256(b"sk-free").hexdigest())]  # fmt: skip
    gateway = gateway_of(StopsAt(16), keys=keys)
    opens = partial(look_at, upstream, gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        assert [chat(root, question).status_code for _ in range(3)] == [200, 200, 429]
        refused = chat(root, question)
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert [chat(root, question, "sk-short").status_code for _ in range(2)] == [200, 429]
        assert chat(root, question, "sk-free").status_code == 200
        assert chat(root, question, None).status_code == 401
        counted = httpx.get(f"{root}/metrics", timeout=60).text
        limit = 'key="few",limit="requests_per_minute"'
        assert f"rlbudget_key_refused_total{{{limit}}} 2.0" in counted
        for secret in (SECRET, DIGEST, "sk-short"):
            assert secret not in counted + refused.text


def test_a_key_has_so_many_requests_at_once(upstream: str, question: str) -> None:
    key = Key("one", DIGEST, concurrent=1)
    gateway = gateway_of(StopsAt(16), keys=[key])
    inside, go = threading.Event(), threading.Event()

    async def waits(arrival: Arrival) -> Arrival:
        if arrival.body.get("seed") == 1:
            inside.set()
            await asyncio.to_thread(go.wait, 60)
        return arrival

    gateway.steering.append(Steering("waits", before=waits))
    opens = partial(look_at, upstream, gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        found: list[int] = []
        first = threading.Thread(
            target=lambda: found.append(chat(root, question, seed=1).status_code)
        )
        first.start()
        assert inside.wait(60)
        assert chat(root, question).status_code == 429
        go.set()
        first.join(60)
        found.append(chat(root, question).status_code)
    assert found == [200, 200]  # one that is over has given its place back


def test_every_request_is_a_line_without_keys_and_texts(upstream: str, question: str) -> None:
    lines: list[bytes] = []
    gateway = gateway_of(StopsAt(16), keys=[Key("team", DIGEST)])
    gateway.journal = Journal(lines.append)
    gateway.steering.append(gateway.journal.part())
    opens = partial(look_at, upstream, gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        found = chat(root, question).json()
        chat(root, question, stream=True)
        chat(root, question, rlbudget={"token_price": -1})
        chat(root, question, "sk-wrong")
        httpx.get(f"{root}/v1/models", headers={"authorization": f"Bearer {SECRET}"})
    told = [orjson.loads(line) for line in lines]
    assert [one["status"] for one in told] == [200, 200, 400, 401, 200]
    assert [one.get("key") for one in told] == ["team", "team", "team", None, "team"]
    ours = found["rlbudget"]
    first = told[0]
    assert (first["id"], first["reason"]) == (ours["request_id"], ours["reason"])
    assert first["thinking_tokens"] == ours["thinking_tokens"]
    assert (told[1]["ended"], told[1]["stream"]) == ("answered", True)
    assert told[4]["path"] == "/v1/models"
    every = b"".join(lines).decode()
    for secret in (SECRET, "sk-wrong", DIGEST, question):
        assert secret not in every


def test_texts_stand_in_the_log_where_they_are_asked_for(
    upstream: str, question: str, tmp_path: Path
) -> None:
    gateway = gateway_of(StopsAt(16))
    gateway.journal = open_journal(str(tmp_path / "log"), texts=True)
    gateway.steering.append(gateway.journal.part())
    opens = partial(look_at, upstream, gateway.settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        found = chat(root, question).json()
    (line,) = (tmp_path / "log").read_bytes().splitlines()
    told = orjson.loads(line)
    assert told["question"] == question
    assert told["answer"] == found["choices"][0]["message"]["content"].strip()


def test_a_log_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    def full(line: bytes) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(full)
    journal.line({"a": 1})
    journal.line({"a": 1})
    assert journal.failures == 2
    with pytest.raises(UserError, match="cannot write the request log"):
        open_journal(str(tmp_path / "none" / "log"))


def test_savings_are_what_those_who_thought_as_far_went_on_for() -> None:
    recorded = Savings(recorded=100.0)
    assert recorded.saved(40, 10) == 50
    assert recorded.saved(200, 10) == 0
    assert Savings().saved(40, 10) is None
    for length in [20] * 20 + [60] * 10 + [100] * 10:
        recorded.full(length)
    assert recorded.saved(40, 10) == (60 + 100) / 2 - 40
    assert recorded.saved(400, 10) == 0


@pytest.fixture
def patient() -> Iterator[tuple[int, list[str]]]:
    """A server with short patience: its port, and how its streams ended."""
    ended: list[str] = []

    class Short(PatientProtocol):
        headers_within = 1.0
        read_within = 0.5

    async def hello(_: HttpRequest) -> Response:
        return PlainTextResponse("hello")

    async def much(_: HttpRequest) -> Response:
        async def blocks() -> Any:
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                ended.append("much")

        return StreamingResponse(blocks())

    app = Starlette(routes=[Route("/", hello), Route("/much", much)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", http=Short))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1], ended
    server.should_exit = True
    thread.join(20)


def test_headers_that_come_drop_by_drop_are_waited_for_only_so_long(
    patient: tuple[int, list[str]],
) -> None:
    for begun in (b"", b"GET / HTTP/1.1\r\nhost: a\r\n"):
        with closing(socket.create_connection(("127.0.0.1", patient[0]), timeout=60)) as client:
            client.sendall(begun)
            start = time.monotonic()
            with suppress(ConnectionResetError):
                assert client.recv(100) == b""
            assert time.monotonic() - start < 30
    with httpx.Client() as client:  # and nobody else is cut off, between two requests either
        assert client.get(f"http://127.0.0.1:{patient[0]}/").text == "hello"
        time.sleep(1.3)
        assert client.get(f"http://127.0.0.1:{patient[0]}/").text == "hello"


def test_a_client_that_reads_nothing_is_cut_off(patient: tuple[int, list[str]]) -> None:
    with closing(socket.create_connection(("127.0.0.1", patient[0]), timeout=60)) as client:
        client.sendall(b"GET /much HTTP/1.1\r\nhost: a\r\n\r\n")
        until(lambda: bool(patient[1]))
    assert patient[1] == ["much"]
