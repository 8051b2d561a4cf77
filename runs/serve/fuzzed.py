"""Requests and streams that begin as good ones and are changed at random."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

KNOWN = ("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "n", "stream",
         "stream_options", "temperature", "top_p", "seed", "stop", "tools", "tool_choice",
         "response_format", "logprobs", "top_logprobs", "logit_bias", "user", "metadata", "store",
         "reasoning_effort", "reasoning", "thinking", "thinking_token_budget", "thinking_budget",
         "chat_template_kwargs", "presence_penalty", "best_of", "echo", "suffix", "modalities",
         "rlbudget", "role", "content", "type", "text", "token_price", "effort", "policy", "off",
         "priority", "task", "question", "request_id", "max_em_loss", "answer_worth",
         "price_per_million", "include_usage", "\u0000", "__proto__", "")  # fmt: skip
"""fields of requests, to be put anywhere"""
OWN_HEADERS = ("token-price", "effort", "off", "policy", "thinking-budget", "metadata", "user",
               "priority", "task", "question", "request-id", "nonsense", "")  # fmt: skip


def odd(drawn: random.Random) -> Any:
    """A value that is seldom expected."""
    return drawn.choice(_ODD)(drawn)


def _deep(drawn: random.Random) -> Any:
    value: Any = 1
    for _ in range(drawn.choice((3, 50, 150))):
        value = [value] if drawn.random() < 0.5 else {"a": value}
    return value


_ODD: tuple[Callable[[random.Random], Any], ...] = (
    lambda d: None,
    lambda d: d.random() < 0.5,
    lambda d: d.choice((0, -1, 1, 2, 7, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30)),
    lambda d: d.choice((0.0, -0.0, 1.5, -1e308, 1e308, 1e-320, float("nan"), float("inf"))),
    lambda d: d.choice(("", "x", "\x00", "a\r\nb: c", "\ud800", "\U0010ffff", "1", "none", "max",
                        "<think>", "</think>", "{", "../..", "%s%n", "\u202e")),
    lambda d: "y" * d.choice((100, 5_000, 200_000)),
    lambda d: [],
    lambda d: {},
    lambda d: [odd(d) for _ in range(d.randrange(1, 4))],
    lambda d: {d.choice(KNOWN): odd(d) for _ in range(d.randrange(1, 4))},
    _deep,
)  # fmt: skip


def changed(value: Any, drawn: random.Random) -> Any:
    """A JSON value, changed at one place."""
    if isinstance(value, dict) and value and drawn.random() < 0.8:
        found = dict(value)
        name = drawn.choice(list(found))
        way = drawn.random()
        if way < 0.15:
            del found[name]
        elif way < 0.35:
            found[drawn.choice(KNOWN)] = odd(drawn)
        else:
            found[name] = changed(found[name], drawn)
        return found
    if isinstance(value, list) and value and drawn.random() < 0.8:
        items = list(value)
        place = drawn.randrange(len(items))
        way = drawn.random()
        if way < 0.15:
            del items[place]
        elif way < 0.35:
            items.insert(place, items[place] if way < 0.25 else odd(drawn))
        else:
            items[place] = changed(items[place], drawn)
        return items
    return odd(drawn)


def spoilt(data: bytes, drawn: random.Random) -> bytes:
    """Bytes, changed at some places."""
    found = bytearray(data)
    for _ in range(drawn.randrange(1, 4)):
        if not found:
            break
        at = drawn.randrange(len(found))
        length = min(drawn.choice((1, 1, 3, 40, 2000)), len(found) - at)
        way = drawn.randrange(6)
        if way == 0:
            found[at] ^= 1 << drawn.randrange(8)
        elif way == 1:
            del found[at : at + length]
        elif way == 2:
            found[at:at] = found[at : at + length]
        elif way == 3:
            found[at:at] = bytes(drawn.randrange(256) for _ in range(min(length, 40)))
        elif way == 4:
            found[at:at] = drawn.choice((b"\n\n", b"\r", b"data: ", b"\x00", b"[[", b'"', b"\\u"))
        else:
            del found[at:]
    return bytes(found)


def body_bytes(drawn: random.Random) -> bytes:
    """Of a completion."""
    body: Any = {
        "model": "replay", "max_tokens": drawn.choice((20, 60)), "temperature": 0.5,
        "stream": drawn.random() < 0.5, "seed": 3, "user": "u",
        "stream_options": {"include_usage": True},
        "rlbudget": {"token_price": 1e-3, "metadata": {"tier": "gold"}, "task": "t"},
    }  # fmt: skip
    if drawn.random() < 0.8:
        parts = [{"type": "text", "text": "1 + 1 ="}]
        body["messages"] = [{"role": "system", "content": "Be brief."},
                            {"role": "user", "content": parts}]  # fmt: skip
    if drawn.random() < 0.3:
        body["prompt"] = "1 + 1 ="
    for _ in range(drawn.choice((0, 0, 1, 1, 1, 2, 3))):
        body = changed(body, drawn)
    written = json.dumps(body).encode()
    return spoilt(written, drawn) if drawn.random() < 0.2 else written


def headers(drawn: random.Random, key: str) -> list[tuple[str, str]]:
    """Of a request; those that HTTP itself forbids now and then."""
    found = [("content-type", "application/json")]
    way = drawn.random()
    if way < 0.9:
        found.append(("authorization", f"Bearer {key}"))
    elif way < 0.95:
        found.append(("authorization", drawn.choice(("", "Bearer", "Basic x", f"Bearer {key[:-1]}",
                                                     "Bearer \xff\xfe"))))  # fmt: skip
    if drawn.random() < 0.3:
        value = drawn.choice(("1e-3", "nan", "true", "max", "{}", "[1]", "\xff", "x" * 5000, "",
                              '{"a": 1}', "-1", "a\tb", "a\x00b", "\x7f"))  # fmt: skip
        found.append((f"x-rlbudget-{drawn.choice(OWN_HEADERS)}", value))
    return found


def stream_bytes(events: list[dict[str, Any]], drawn: random.Random | None) -> bytes:
    """The body of a stream of events; a good one without random numbers."""
    if drawn is not None and drawn.random() < 0.6:
        events = list(events)
        for _ in range(drawn.randrange(1, 4)):
            place = drawn.randrange(len(events))
            way = drawn.random()
            if way < 0.7:
                events[place] = changed(events[place], drawn)
            elif way < 0.8:
                del events[place]
            elif way < 0.9:
                events.insert(place, events[drawn.randrange(len(events))])
            else:
                events[place:] = events[place:][::-1]
            if not events:
                break
    written = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    written += b"data: [DONE]\n\n"
    return written if drawn is None or drawn.random() < 0.4 else spoilt(written, drawn)
