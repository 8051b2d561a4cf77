"""Streams of an OpenAI-compatible ``/completions``: chunks in, tokens out, faults survived.

Servers write log-probabilities in two ways: parallel lists (vLLM, SGLang), or one object a token
with its id (llama-server). Both become ``Token``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NoReturn

import httpx
import orjson

from rlbudget.errors import UserError

_ID = "token_id:"
_PAUSE = 0.1
_AGAIN = frozenset({408, 409, 425, 429})


class ServerError(ConnectionError):
    """The server failed, in one line; nothing that the caller said was wrong."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a stream."""

    key: int | str | None
    """its id, or its own text where the server gives no id"""
    text: str
    """what it adds to the text; empty inside a character"""
    logprob: float | None
    """nats; None where the server gives none"""
    top: tuple[tuple[int | str, float], ...]
    """(id, or text where there is no id; nats) of the likeliest tokens"""


Chunk = tuple[list[Token], str | None]
"""tokens and, at the end, the finish reason"""


@dataclass(slots=True)
class Prompt:
    """What the model has read and written so far, as ids and as text; only one is sent."""

    ids: list[int]
    text: str
    by_ids: bool

    @property
    def body(self) -> list[int] | str:
        """As the server takes it."""
        return self.ids if self.by_ids else self.text

    def add(self, ids: Sequence[int], text: str) -> None:
        """Go on."""
        self.ids += ids
        self.text += text


@dataclass(slots=True)
class Endpoint:
    """``/completions`` of one server."""

    client: httpx.AsyncClient = field(repr=False)
    name: str
    """the server's address without anything secret"""
    secret: str | None = field(repr=False)
    """must never show in a message"""
    retries: int
    """faults that one decode survives"""

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """The chunks of one request.

        Raises ``UserError`` where the server refuses the request, ``ServerError`` where it, or
        the way to it, breaks down: also in the middle.
        """
        content = orjson.dumps({**body, "stream": True, "n": 1})
        finish = None
        try:
            async with self.client.stream("POST", "completions", content=content) as response:
                if response.status_code != 200:
                    self.refuse(response.status_code, await response.aread())
                async for data in _events(response):
                    chunk = orjson.loads(data)
                    if chunk.get("error"):
                        raise ServerError(f"{self.name}: {self.clean(_message(chunk))}")
                    for choice in chunk.get("choices") or ():
                        finish = choice.get("finish_reason") or finish
                        yield list(read_choice(choice)), choice.get("finish_reason")
        except (httpx.RequestError, orjson.JSONDecodeError) as error:
            what = self.clean(str(error)) or type(error).__name__
            raise ServerError(f"{self.name}: {what}") from None
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            what = self.clean(f"{type(error).__name__}: {error}")
            raise ServerError(f"{self.name}: a chunk that cannot be read ({what})") from None
        if finish is None:
            raise ServerError(f"{self.name}: the stream ended in the middle")

    def refuse(self, status: int, content: bytes) -> NoReturn:
        """Raise what an answer with this status means."""
        try:
            said = _message(orjson.loads(content))
        except (orjson.JSONDecodeError, AttributeError):
            said = content.decode(errors="replace")
        said = self.clean(said)
        if status >= 500 or status in _AGAIN:
            raise ServerError(f"{self.name}: status {status}: {said}")
        if status in (401, 403):
            raise UserError(f"{self.name} does not accept the key (status {status})")
        raise UserError(f"{self.name} refuses the request (status {status}): {said}")

    def clean(self, text: str) -> str:
        """One line without the key."""
        hidden = text.replace(self.secret, "***") if self.secret else text
        return " ".join(hidden.split())[:300]


@dataclass(slots=True)
class Stream:
    """One continuation of a prompt, asked for again from where it broke off."""

    endpoint: Endpoint
    prompt: Prompt
    max_tokens: int
    fields: Mapping[str, Any]
    faults: list[str]
    """of the whole decode, shared by its streams"""
    finish: str | None = None
    """why the server ended it; None where the reader did"""

    async def tokens(self) -> AsyncGenerator[Token, None]:
        """Tokens, as they come. The reader adds to the prompt those it takes, one by one."""
        left = self.max_tokens
        while left > 0:
            body = {**self.fields, "prompt": self.prompt.body, "max_tokens": left}
            try:
                async with aclosing(self.endpoint.stream(body)) as chunks:
                    async for tokens, finish in chunks:
                        for token in tokens:
                            left -= 1
                            yield token
                        self.finish = finish or self.finish
                return
            except ServerError as error:
                if self.finish is not None:
                    return
                self.faults.append(str(error))
                if len(self.faults) > self.endpoint.retries:
                    times = len(self.faults)
                    raise ServerError(f"{error} (given up after {times} faults)") from None
                await asyncio.sleep(_PAUSE * 2 ** (len(self.faults) - 1))
        self.finish = self.finish or "length"


def read_choice(choice: Mapping[str, Any]) -> Iterator[Token]:
    """The tokens of a chunk's choice, whichever way its server writes them."""
    logprobs = choice.get("logprobs") or {}
    ids = choice.get("token_ids")
    if logprobs.get("content"):
        for item in logprobs["content"]:
            top = item.get("top_logprobs") or ()
            likeliest = tuple((t.get("id", t.get("token")), t["logprob"]) for t in top)
            key = item.get("id", item.get("token"))
            yield Token(key, item.get("token", ""), item.get("logprob"), likeliest)
        return
    names = logprobs.get("tokens") or []
    if ids is not None and len(ids) != len(names):
        yield from (Token(token, "", None, ()) for token in ids)
        return
    if not names and choice.get("text"):
        yield Token(None, choice["text"], None, ())
    values = logprobs.get("token_logprobs") or [None] * len(names)
    tops = logprobs.get("top_logprobs") or [None] * len(names)
    texts = _texts(names, choice.get("text") or "")
    for place, (name, value, top) in enumerate(zip(names, values, tops, strict=True)):
        own = ids[place] if ids is not None else _key(name)
        likeliest = tuple((_key(k), v) for k, v in (top or {}).items() if v is not None)
        yield Token(own, texts[place], value, likeliest)


def _texts(names: Sequence[str], text: str) -> list[str]:
    """The chunk's text, dealt out to its tokens."""
    if len(names) == 1:
        return [text]
    if "".join(names) == text:
        return list(names)
    return [*[""] * (len(names) - 1), text]


def _key(name: str) -> int | str:
    return int(name[len(_ID) :]) if name.startswith(_ID) else name


def _message(content: Any) -> str:
    error = content.get("error", content)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """The data of server-sent events.

    Lines end at line feeds alone: httpx would also break them at characters such as U+2028,
    which are allowed inside JSON.
    """
    rest = b""
    async for block in response.aiter_bytes():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield data
