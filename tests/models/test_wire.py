"""Server-sent events, waiting, and what statuses mean."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbudget.errors import UserError
from rlbudget.models.messages import Chunk, read
from rlbudget.models.patience import Patience
from rlbudget.models.server_events import Events
from rlbudget.models.site import ServerError, find_site, retry_after

STREAM = (
    '\ufeffdata: {"a": 1}\n\n'
    ": a comment\r\n\r\n"
    'id: 7\nevent: message\nretry: 10\ndata:{"a":\ndata: 2}\n\n'
    'data: {"a": "\u2028 \u0085 \U0001f600"}\r\n\r\n'
    "data\rdata: \r\r"
    'data: {"a": 3}\r\r'
    'event: ping\ndata: {"type": "ping"}\n\n'
    "data: null\n\n"
    'event: error\ndata: {"message": "no"}\n\n'
    'data: {"a": -Infinity}\n\n'
    'data: {"a": 4}\ndata: {"a": 5}\n\n'
    "data: [DONE]\n\n"
    'data: {"a": 6}\n\n'
).encode()
FOUND = [
    {"a": 1}, {"a": 2}, {"a": "\u2028 \u0085 \U0001f600"}, {"a": 3}, {"type": "ping"},
    {"error": {"message": "no"}}, {"a": -math.inf}, {"a": 4}, {"a": 5},
]  # fmt: skip


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_events_are_the_same_however_their_bytes_are_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    events = Events()
    found = [one for start, stop in pairwise(places) for one in events.feed(STREAM[start:stop])]
    assert [json.loads(one) for one in found] == FOUND
    assert events.done


def test_an_event_arrives_with_its_last_byte() -> None:
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        events = Events()
        assert events.feed(b'data: {"a": 1}') == []
        assert events.feed(end[:-1]) + events.feed(end[-1:]) == [b'{"a": 1}']


def test_the_last_event_needs_no_empty_line() -> None:
    events = Events()
    assert events.feed(b'data: {"a": 1}') == []
    assert events.close() == [b'{"a": 1}']


def test_retry_after_is_seconds_or_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=3000), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": "2"}) == 2.0
    assert retry_after({"retry-after": " 0.5 "}) == 0.5
    assert retry_after({"retry-after": soon}) == pytest.approx(3000, abs=300)
    assert retry_after({"retry-after": past}) == 0.0
    for nonsense in ("", "soon", "-1", "nan", "inf", "\u00b2"):
        assert retry_after({"retry-after": nonsense}) is None
    assert retry_after({}) is None


def test_waiting_that_is_asked_for_is_no_fault_but_has_an_end() -> None:
    patience = Patience(faults=1, seconds=10.0)
    busy = ServerError("busy", wait=3.0)
    assert [patience.pause(busy) for _ in range(3)] == [3.0, 3.0, 3.0]
    assert patience.pause(ServerError("gone")) > 0
    with pytest.raises(ServerError, match=r"busy \(given up: it asks for 3 s"):
        patience.pause(busy)
    with pytest.raises(ServerError, match=r"gone \(given up after 2 faults\)"):
        patience.pause(ServerError("gone"))


def test_no_retries_means_no_waiting_either() -> None:
    with pytest.raises(ServerError, match="given up after 1 faults"):
        Patience(faults=0, seconds=10.0).pause(ServerError("busy", wait=1.0))


def test_a_server_that_asks_for_an_hour_is_given_up_at_once() -> None:
    before = time.monotonic()
    with pytest.raises(ServerError, match="3600 s"):
        Patience(faults=3, seconds=120.0).pause(ServerError("busy", wait=3600.0))
    assert time.monotonic() - before < 60


def test_a_status_is_a_fault_or_a_refusal() -> None:
    site = find_site("http://name:pw@host:1/v1", "sk-1", "http://HOST:PORT/v1")
    for status in (408, 429, 500, 503, 529):
        with pytest.raises(ServerError, match=f"http://host:1/v1: status {status}: no \\*\\*\\*"):
            site.refuse(status, {"error": {"message": "no sk-1"}})
    for status in (400, 404, 422):
        with pytest.raises(UserError, match="refuses the request"):
            site.refuse(status, "no")
    for status in (401, 403):
        with pytest.raises(UserError, match="does not accept the key"):
            site.refuse(status, "no")
    assert "sk-1" not in repr(site)
    assert "pw" not in repr(site)


def test_a_status_says_how_long_to_wait() -> None:
    site = find_site("http://host/v1", None, "http://HOST:PORT/v1")
    with pytest.raises(ServerError) as caught:
        site.check(503, b"<html>busy", {"retry-after": "7"})
    assert caught.value.wait == 7.0


def test_an_error_in_the_middle_of_a_stream_has_a_status_too() -> None:
    site = find_site("http://host/v1", None, "http://HOST:PORT/v1")
    site.check_error(None)
    with pytest.raises(ServerError, match="overloaded"):
        site.check_error({"message": "overloaded", "code": 502})
    with pytest.raises(ServerError, match="overloaded"):
        site.check_error({"message": "overloaded", "code": "server_error"})
    with pytest.raises(UserError, match="too long"):
        site.check_error({"message": "too long", "code": 400})


def test_json_of_python_servers_is_read() -> None:
    text = b'{"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [-Infinity]}}]}'
    (choice,) = read(Chunk, text).choices or ()
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [-math.inf]
    with pytest.raises(msgspec.DecodeError):
        read(Chunk, b"{")
