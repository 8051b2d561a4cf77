"""What servers send that they should not: every request ends, small, typed, and without the key."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rlbudget.errors import UserError
from rlbudget.models.caller import calling
from rlbudget.models.messages import Choice, Chunk, Completion, Listing, Tokens, listed_tokens, read
from rlbudget.models.server_events import Events
from rlbudget.models.site import ServerError, Site, find_site
from rlbudget.models.wire import Endpoint, open_endpoint

KEY = "sk-SECRET-123456"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
TOKEN = b'data: {"choices": [{"text": "a"}]}\n\n'
Say = Callable[[asyncio.StreamWriter], Awaitable[None]]


def site_of(port: int) -> Site:
    return find_site(f"http://127.0.0.1:{port}/v1", KEY, "http://HOST:PORT/v1")


def meet(
    say: Say,
    ask: Callable[[Endpoint], Awaitable[Any]],
    *,
    timeout: float = 0.5,
    deadline: float = 5.0,
    retries: int = 0,
) -> tuple[Any, list[bytes]]:
    """What ``ask`` gives, or its error, and the requests that came."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                heads.append(head)
                length = [line for line in head.split(b"\r\n") if b"content-length" in line.lower()]
                if length:
                    await reader.readexactly(int(length[0].partition(b":")[2]))
                await say(writer)
                await writer.drain()
        writer.close()

    async def run() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            opened = open_endpoint(
                site_of(port), retries=retries, timeout=timeout, deadline=deadline
            )
            async with opened as endpoint:
                try:
                    return await ask(endpoint)
                except (ServerError, UserError) as error:
                    return error

    return asyncio.run(run()), heads


def flood(start: bytes, unit: bytes, pause: float = 0.0) -> Say:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(unit)
            await writer.drain()
            await asyncio.sleep(pause)

    return say


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> Say:
    async def say(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        writer.write(head.encode() + body)

    return say


async def stream(endpoint: Endpoint) -> list[Chunk]:
    found = []
    limits = {"event": 1 << 20, "whole": 1 << 24}
    async for block in endpoint.stream("completions", {}, endpoint.clock(), **limits):
        found += block
    return found


async def listing(endpoint: Endpoint) -> Listing:
    return await endpoint.ask(Listing, "models")


SILENT = {
    "keep-alives": flood(EVENTS, b": ping\n\n", 0.02),
    "empty choices": flood(EVENTS, b'data: {"choices": []}\n\n', 0.02),
    "empty text": flood(EVENTS, b'data: {"choices": [{"text": ""}]}\n\n', 0.02),
    "single bytes": flood(EVENTS + b"data: ", b" ", 0.02),
    "headers": flood(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.02),
    "interim answers": flood(b"", b"HTTP/1.1 102 Processing\r\n\r\n", 0.02),
    "nothing": flood(b"", b"", 0.02),
}


@pytest.mark.parametrize("kind", SILENT)
@pytest.mark.parametrize("ask", [stream, listing])
def test_what_is_no_token_extends_nothing(
    kind: str, ask: Callable[[Endpoint], Awaitable[Any]]
) -> None:
    began = time.monotonic()
    error, _ = meet(SILENT[kind], ask, retries=3, deadline=60.0)
    assert isinstance(error, ServerError), error
    assert 0.4 < time.monotonic() - began < 20


def test_a_deadline_ends_a_stream_of_tokens_too() -> None:
    began = time.monotonic()
    error, heads = meet(flood(EVENTS, TOKEN, 0.05), stream, deadline=1.0, retries=3)
    assert isinstance(error, ServerError)
    assert "not done within 1 s" in str(error)
    assert 0.9 < time.monotonic() - began < 20
    assert len(heads) == 1


LARGE = {
    "a line": flood(EVENTS + b"data: ", b"y" * 65536),
    "lines": flood(EVENTS, b"data: y\n" * 8192),
    "comments": flood(EVENTS, b": ping\n\n" * 8192),
    "a compressed line": answer(gzip.compress(b"y" * 10**8), headers="Content-Encoding: gzip\r\n"),
    "compressed comments": answer(
        gzip.compress(b": ping\n\n" * 10**7), headers="Content-Encoding: gzip\r\n"
    ),
    "another coding": answer(b"\x5b" * 99, headers="Content-Encoding: br\r\n"),
    "a header": answer(b"", headers="X: " + "y" * 10**6 + "\r\n"),
    "headers": flood(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000),
    "an error": flood(b"HTTP/1.1 500 X\r\n\r\n", b"z" * 65536),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("ask", [stream, listing])
def test_what_is_too_large_is_not_read_to_its_end(
    kind: str, ask: Callable[[Endpoint], Awaitable[Any]]
) -> None:
    error, _ = meet(LARGE[kind], ask, timeout=120.0, deadline=120.0)
    assert isinstance(error, ServerError), error
    assert len(str(error)) < 500
    assert "nothing came" not in str(error)
    assert "not done" not in str(error)


def test_a_compressed_answer_is_read_all_the_same() -> None:
    body = gzip.compress(b'{"data": [{"id": "m"}]}')
    found, _ = meet(answer(body, headers="Content-Encoding: gzip\r\n"), listing)
    assert [json.loads(bytes(one)) for one in found.data] == [{"id": "m"}]
    error, _ = meet(answer(body[:-9], headers="Content-Encoding: gzip\r\n"), listing)
    assert "breaks off" in str(error)


def test_a_redirect_is_not_followed() -> None:
    for status in ("301 X", "302 X", "307 X", "308 X"):
        error, heads = meet(answer(b"", status, "Location: /stolen\r\n"), listing)
        assert "redirects" in str(error)
        assert len(heads) == 1
        assert KEY.encode() in heads[0]


def test_the_second_answer_to_one_request_is_not_that_to_the_next() -> None:
    first = answer(b'{"data": []}')

    async def say(writer: asyncio.StreamWriter) -> None:
        await first(writer)
        await writer.drain()
        await asyncio.sleep(0.1)
        await answer(b'{"data": [1]}')(writer)

    async def twice(endpoint: Endpoint) -> list[int]:
        found = []
        for _ in range(2):
            found.append(len((await listing(endpoint)).data or ()))
            await asyncio.sleep(0.3)
        return found

    assert meet(say, twice)[0] == [0, 0]


def test_connections_are_kept_where_nothing_is_wrong() -> None:
    async def twice(endpoint: Endpoint) -> list[Any]:
        await listing(endpoint)
        await listing(endpoint)
        connector: Any = endpoint.session.connector
        return [len(held) for held in connector._conns.values()]

    assert meet(answer(b'{"data": []}'), twice)[0] == [1]


@pytest.mark.parametrize("status", ["400 X", "401 X", "500 X"])
@pytest.mark.parametrize(
    "words",
    [
        KEY,
        f"Bearer {KEY}",
        "\x00".join(KEY),
        "\u200b".join(KEY),
        KEY.lower(),
        f"http://u:{KEY}@h/?api_key={KEY}",
        json.dumps({"error": {"message": f"\x1b[31m\x07no {KEY}\r\n{KEY}"}}),
        json.dumps({"detail": [{"input": KEY}]}),
        " " * 70_000 + KEY,
        "y" * (65_536 - 5) + KEY,
    ],
)
def test_no_key_and_no_control_character_is_shown(status: str, words: str) -> None:
    error, _ = meet(answer(words.encode(), status), listing)
    assert str(error).isprintable()
    assert len(str(error)) < 500
    assert "secret" not in str(error).lower()


def test_keys_in_an_address_are_not_shown() -> None:
    site = find_site("http://me:pa55word@host/v1?api-key=tops3cret&v=1", None, "http://HOST/v1")
    shown = site.clean("http://me:pa55word@host/v1?api-key=tops3cret") + site.name + repr(site)
    assert "pa55word" not in shown
    assert "tops3cret" not in shown
    assert site.headers["Authorization"].startswith("Basic ")
    assert str(site.at("models")) == "http://host/v1/models?api-key=tops3cret&v=1"


def test_other_peoples_keys_are_not_shown_either() -> None:
    site = find_site("http://host/v1", None, "http://HOST:PORT/v1")
    shown = site.clean("Authorization: Bearer abc.def upstream?token=ghi sk-jklmnopq hf_rstuvwxyz")
    for secret in ("abc", "ghi", "jkl", "rst"):
        assert secret not in shown


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "body", [DEEP, b'{"zzz":' + DEEP, b'{"data":' + DEEP, b'{"zzz": NaN, "a":' + DEEP]
)
@pytest.mark.parametrize("status", ["200 OK", "400 X"])
def test_deep_nesting_is_refused_in_a_line(body: bytes, status: str) -> None:
    error, _ = meet(answer(body, status), listing)
    assert isinstance(error, (ServerError, UserError))
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("kind", "text", "field"),
    [
        (Chunk, b'{"choices": "abc"}', "choices"),
        (Chunk, b'{"choices": [null]}', "choices"),
        (Chunk, b'{"choices": [{"text": 5}]}', "text"),
        (Chunk, b'{"choices": [{"token_ids": ["x"]}]}', "token_ids"),
        (Chunk, b'{"choices": [{"token_ids": [1.5]}]}', "token_ids"),
        (Chunk, b'{"choices": [{"token_ids": [true]}]}', "token_ids"),
        (Chunk, b'{"choices": [{"finish_reason": 7}]}', "finish_reason"),
        (Chunk, b'{"choices": [{"finish_reason": ["stop"]}]}', "finish_reason"),
        (Chunk, b'{"choices": [{"logprobs": {"token_logprobs": ["x"]}}]}', "token_logprobs"),
        (Chunk, b'{"choices": [{"logprobs": {"top_logprobs": [[1]]}}]}', "top_logprobs"),
        (Chunk, b'{"choices": [{"logprobs": {"top_logprobs": [{"a": NaN, "b": "x"}]}}]}', "top"),
        (Chunk, b'{"usage": {"completion_tokens": "many"}}', "completion_tokens"),
        (Completion, b'{"tokens": ["x"]}', "tokens"),
        (Tokens, b'{"tokens": null}', "tokens"),
        (Listing, b'{"data": 5}', "data"),
    ],
)
def test_a_wrong_type_is_named_by_its_field(kind: type[Any], text: bytes, field: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        read(kind, text)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "0.5", "1e308"])
def test_what_is_no_log_probability_is_missing(value: str) -> None:
    lists = f'{{"tokens": ["a"], "token_logprobs": [{value}], "top_logprobs": [{{"a": {value}}}]}}'
    entries = f'{{"content": [{{"id": 1, "logprob": {value}, "top_logprobs": [{{"id": 1, "logprob": {value}}}]}}]}}'  # noqa: E501
    for logprobs in (lists, entries):
        text = f'{{"choices": [{{"logprobs": {logprobs}}}]}}'.encode()
        ((choice,)) = read(Chunk, text).choices or ()
        (one,) = listed_tokens(choice)
        assert (one.logprob, one.top) == (None, ())


def test_rounding_above_0_and_impossible_tokens_are_no_nonsense() -> None:
    text = b'{"logprobs": {"tokens": ["a"], "token_logprobs": [1e-6], "top_logprobs": [{"a": -Infinity, "b": null}]}}'  # noqa: E501
    (one,) = listed_tokens(msgspec.convert(json.loads(text), Choice))
    assert one.logprob == 0.0
    assert one.top == (("a", -math.inf), ("b", -math.inf))


@pytest.mark.parametrize(
    "name", ["token_id:x", "token_id:-1", "token_id:٥", "token_id:" + "9" * 99]
)
def test_a_name_that_is_no_id_is_refused(name: str) -> None:
    choice = msgspec.convert({"logprobs": {"tokens": [name]}}, Choice)
    with pytest.raises(ValueError, match="names no token"):
        listed_tokens(choice)


def test_events_are_read_in_linear_time() -> None:
    def seconds(count: int) -> float:
        events, began = Events(1 << 24), time.process_time()
        for _ in range(count):
            events.feed(b"y" * 64)
        return time.process_time() - began

    seconds(1000)
    assert min(seconds(40_000) for _ in range(3)) < 40 * min(seconds(4_000) for _ in range(3))


def test_a_thread_waits_for_the_same_client() -> None:
    with (
        calling(site_of(9), retries=0, timeout=1.0, deadline=1.0) as caller,
        pytest.raises(ServerError, match=r"127\.0\.0\.1:9"),
    ):
        caller.ask(Listing, "models")


@pytest.mark.slow
def test_hostile_servers_cost_no_call_its_time_its_memory_or_its_key() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "runs.trust.hostile_servers", "--every", "12"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=280)
    rows = json.loads(ran.stdout.splitlines()[-1])["rows"]
    assert [one for one in rows[1:] if not one["met"]] == [], ran.stderr
