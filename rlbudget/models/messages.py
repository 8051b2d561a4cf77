"""What servers send: the fields that are read, and their types; all others are skipped.

A message of other types is refused in one line that names the field. Log-probabilities that are
none (NaN, above 0) are missing ones: no signal is made of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")

_ID = "token_id:"
PART = "\ufffd"
"""How a part of a character reads."""
_ROUNDING = 1e-3
"""Nats above 0 that are still taken for 0: servers compute in half precision."""


class Likely(msgspec.Struct, frozen=True, gc=False):
    """One of the likeliest tokens, as llama-server and chats write it."""

    logprob: float | None
    id: int | None = None
    token: str | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What llama-server, or a chat, lists of one token."""

    id: int | None = None
    token: str | None = None
    logprob: float | None = None
    top_logprobs: list[Likely] | None = None


class Logprobs(msgspec.Struct, frozen=True, gc=False):
    """Either one object a token, or parallel lists."""

    content: list[Entry] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What a chat adds."""

    content: str | None = None
    reasoning_content: str | None = None


class Finish(msgspec.Struct, frozen=True, gc=False):
    """A finish reason as some SGLang versions write it."""

    type: str | None = None


class Choice(msgspec.Struct, frozen=True, gc=False):
    """One continuation's part of a chunk."""

    index: int | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    logprobs: Logprobs | None = None
    delta: Delta | None = None
    finish_reason: str | Finish | None = None
    stop_reason: Any = msgspec.UNSET
    matched_stop: Any = msgspec.UNSET

    @property
    def finish(self) -> str:
        """The finish reason in small letters; empty where there is none."""
        said = self.finish_reason
        return ((said.type if isinstance(said, Finish) else said) or "").lower()

    @property
    def told(self) -> Any:
        """What the server says ended the text: a token's id, a text; None where it does not."""
        given = self.matched_stop if self.stop_reason is msgspec.UNSET else self.stop_reason
        return None if given is msgspec.UNSET else given

    @property
    def says(self) -> bool:
        """Whether it holds anything: an empty one is no sign of life."""
        delta = self.delta
        shown = delta is not None and bool(delta.content or delta.reasoning_content)
        return shown or bool(self.text or self.token_ids or self.logprobs or self.finish_reason)


class PromptTokens(msgspec.Struct, frozen=True, gc=False):
    """Of the prompt's tokens."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What a server counts."""

    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokens | None = None


class Timings(msgspec.Struct, frozen=True, gc=False):
    """What llama-server counts."""

    predicted_n: int | None = None
    cache_n: int | None = None


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """One event of a stream of completions or of a chat."""

    id: str | int | None = None
    choices: list[Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: Any = None

    @property
    def made(self) -> int:
        """How many tokens the server says it has made; 0 where it does not."""
        used, timed = self.usage, self.timings
        return max((used and used.completion_tokens) or 0, (timed and timed.predicted_n) or 0)


class Listing(msgspec.Struct, frozen=True, gc=False):
    """``/models``; each entry is read by itself."""

    data: list[msgspec.Raw] | None = None


class Meta(msgspec.Struct, frozen=True, gc=False):
    """What llama-server tells of its model."""

    n_vocab: int | None = None
    n_ctx: int | None = None


class Model(msgspec.Struct, frozen=True, gc=False):
    """A model that a server lists."""

    id: str
    owned_by: str | None = None
    root: str | None = None
    max_model_len: int | None = None
    meta: Meta | None = None


class Completion(msgspec.Struct, frozen=True, gc=False):
    """llama-server's ``/completion``."""

    tokens: list[int] | None = None
    completion_probabilities: list[Entry] | None = None
    stop_type: str | None = None
    tokens_predicted: int | None = None
    timings: Timings | None = None


class ScoredChoice(msgspec.Struct, frozen=True, gc=False):
    """The tokens of a prompt, by ``prompt_logprobs`` (token id -> entry) or by ``echo``."""

    prompt_logprobs: list[dict[str, Likely] | None] | None = None
    logprobs: Logprobs | None = None


class Scored(msgspec.Struct, frozen=True, gc=False):
    """A completion whose prompt was scored."""

    choices: list[ScoredChoice] | None = None
    error: Any = None


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """llama-server's ``/tokenize``."""

    tokens: list[int]


class Template(msgspec.Struct, frozen=True, gc=False):
    """llama-server's ``/apply-template``."""

    prompt: str


class Telltale(msgspec.Struct, frozen=True, gc=False):
    """What tells a server's kind, of its routes ``/version``, ``/props``, ``/get_server_info``."""

    version: str | None = None
    default_generation_settings: Any = None
    attention_backend: Any = None


class Control(msgspec.Struct, frozen=True, gc=False):
    """llama-server's answer to a control request."""

    success: bool = False
    message: str | None = None


class Listed(NamedTuple):
    """What a server lists of one token."""

    key: int | str | None
    """its id, or its text where there is no id"""
    name: str
    logprob: float | None
    """nats, at most 0; None where there is none"""
    top: tuple[tuple[int | str | None, float], ...]
    """(key, nats) of the likeliest tokens; empty where one of them is no log-probability"""


_DECODERS: Mapping[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (Chunk, Listing, Model, Completion, Scored, Tokens, Template, Telltale, Control)
}


def read(kind: type[T], data: bytes) -> T:
    """A message from JSON, in which Python servers also write NaN and -Infinity.

    Raises ``msgspec.DecodeError`` (``ValueError``, ``RecursionError``) for what is none.
    """
    try:
        found: T = _DECODERS[kind].decode(data)
        return found
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"NaN" not in data and b"Infinity" not in data:
            raise
    return msgspec.convert(json.loads(data), kind)


def listed_tokens(choice: Choice | ScoredChoice) -> list[Listed]:
    """What a chunk's choice lists, whichever way its server writes it."""
    logprobs = choice.logprobs
    if logprobs is None:
        return []
    if logprobs.content:
        return [listed_token(entry) for entry in logprobs.content]
    names = logprobs.tokens or []
    values = logprobs.token_logprobs or [None] * len(names)
    tops = logprobs.top_logprobs or [None] * len(names)
    if not len(names) == len(values) == len(tops):
        raise ValueError(f"log-probabilities of {len(values)} of {len(names)} tokens")
    return [
        Listed(_key(name), name, _nats(value), _likeliest(top.items() if top else ()))
        for name, value, top in zip(names, values, tops, strict=True)
    ]


def listed_token(entry: Entry) -> Listed:
    """What an object of llama-server lists of a token."""
    top = (
        (one.token if one.id is None else one.id, one.logprob) for one in entry.top_logprobs or ()
    )
    name = entry.token or ""
    key = _key(name) if entry.id is None else entry.id
    return Listed(key, name, _nats(entry.logprob), _likeliest(top))


def _nats(value: float | None) -> float | None:
    if value is None or value <= 0.0:
        return value
    return 0.0 if value <= _ROUNDING else None  # also NaN, which compares to nothing


def _likeliest(
    top: Iterable[tuple[int | str | None, float | None]],
) -> tuple[tuple[int | str | None, float], ...]:
    found = []
    for key, value in top:
        nats = -math.inf if value is None else _nats(value)
        if nats is None:
            return ()
        found.append((_key(key) if isinstance(key, str) else key, nats))
    return tuple(found)


def _key(name: str) -> int | str | None:
    """A token's id or text from the name it is listed under; None for a part of a character."""
    if name.startswith(_ID):
        digits = name[len(_ID) :]
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 19):
            raise ValueError(f"{name[:40]!r} names no token")
        return int(digits)
    return None if PART in name or name.startswith("bytes:") else name
