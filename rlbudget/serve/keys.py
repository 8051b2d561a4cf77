"""The keys that clients show: known by digest, compared in constant time, each with its limits.

A keys file is TOML; it holds digests, never keys::

    [[key]]
    name = "team-a"
    sha256 = "5e88…"            # printf %s KEY | sha256sum
    requests_per_minute = 60
    tokens_per_minute = 100_000
    concurrent = 8

What a minute allows flows in evenly and may be spent at once. Tokens are those that were read and
written; a request is let in while any are left, and pays when it is over.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.strategies.toml_lines import read_toml

_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """One key."""

    name: str
    """for logs, metrics and limits"""
    digest: str
    """SHA-256, hexadecimal"""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrent: int | None = None
    """requests at once"""


class TooMuchError(Exception):
    """A key asks for more than it may; ``limit`` names what, ``after`` says when again, in
    seconds."""  # fmt: skip

    def __init__(self, limit: str, after: float) -> None:
        super().__init__(f"this key has used up its {limit.replace('_', ' ')}")
        self.limit, self.after = limit, after


@dataclass(slots=True)
class _Purse:
    """What is left of a minute's allowance."""

    most: float
    left: float
    at: float

    def flow(self) -> None:
        now = time.monotonic()
        self.left = min(self.left + (now - self.at) * self.most / 60, self.most)
        self.at = now

    def wait(self, needed: float) -> float:
        """Seconds until so much is left."""
        return max(needed - self.left, 0.0) * 60 / self.most


class Keyring:
    """All keys, and what each has left."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self.keys = tuple(keys)
        self._running = {key.name: 0 for key in keys}
        now = time.monotonic()
        self._requests = {k.name: _Purse(k.requests_per_minute, max(k.requests_per_minute, 1), now)
                          for k in keys if k.requests_per_minute is not None}  # fmt: skip
        self._tokens = {k.name: _Purse(k.tokens_per_minute, k.tokens_per_minute, now)
                        for k in keys if k.tokens_per_minute is not None}  # fmt: skip

    def find(self, headers: Mapping[str, str]) -> Key | None:
        """That of a request, by header names in lower case; all are compared, in constant time."""
        given = headers.get("authorization", "")
        shown = given[7:] if given[:7].lower() == "bearer " else headers.get("api-key", "")
        digest = sha256(shown.encode("utf-8", "surrogateescape")).hexdigest()
        found: Key | None = None
        for key in self.keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def enter(self, key: Key) -> None:
        """A request begins; ``TooMuchError`` where the key may not. Call ``leave`` at its end."""
        name = key.name
        if key.concurrent is not None and self._running[name] >= key.concurrent:
            raise TooMuchError("requests at once", 1.0)
        for limit, purses, needed in (("tokens_per_minute", self._tokens, 1.0),
                                      ("requests_per_minute", self._requests, 1.0)):  # fmt: skip
            if (purse := purses.get(name)) is not None:
                purse.flow()
                if purse.left < min(needed, purse.most):
                    raise TooMuchError(limit, purse.wait(min(needed, purse.most)))
        if name in self._requests:
            self._requests[name].left -= 1
        self._running[name] += 1

    def leave(self, key: Key) -> None:
        """A request is over."""
        self._running[key.name] -= 1

    def spend(self, name: str | None, tokens: int) -> None:
        """A request of the key ``name`` has read and written so many tokens."""
        if name is not None and (purse := self._tokens.get(name)) is not None:
            purse.flow()
            purse.left -= tokens


def read_keys(path: Path | str) -> list[Key]:
    """Those of a keys file; ``UserError``, ``FILE:LINE: what is wrong``, for any other content."""
    file = read_toml(path, "the keys")
    if unknown := sorted(set(file.content) - {"key"}):
        raise file.wrong(f"{unknown[0]}: unknown; there is [[key]]", unknown[0])
    entries = file.content.get("key", [])
    if not isinstance(entries, list) or not entries:
        raise file.wrong("name at least one [[key]]")
    found: list[Key] = []
    for place, entry in enumerate(entries):
        where = ("key", place)
        if not isinstance(entry, dict):
            raise file.wrong("a key is a table: write [[key]]", "key")
        if "key" in entry:
            raise file.wrong("a key itself is not kept in a file: write its sha256", *where)
        if unknown := sorted(set(entry) - {"name", "sha256", *_LIMITS}):
            raise file.wrong(f"{unknown[0]}: unknown; there are name, sha256, {', '.join(_LIMITS)}",
                             *where)  # fmt: skip
        name, digest = entry.get("name"), entry.get("sha256")
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise file.wrong("name: a text is needed", *where)
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise file.wrong("sha256: 64 hexadecimal digits are needed", *where)
        limits = {limit: entry[limit] for limit in _LIMITS if limit in entry}
        for limit, value in limits.items():
            if type(value) not in (int, float) or not 0 < value < 1e15:
                raise file.wrong(f"{limit}: a number above 0 is needed", *where)
        if type(limits.get("concurrent", 1)) is not int:
            raise file.wrong("concurrent: a whole number is needed", *where)
        if any(name == one.name for one in found):
            raise file.wrong(f"two keys are called {name!r}", *where)
        found.append(Key(name, digest.lower(), **limits))
    return found


def digests_of(given: str, variable: str = "RLBUDGET_KEYS") -> list[Key]:
    """Those of an environment variable: keys, or their digests as ``sha256:HEX``, with commas
    between; without limits, each called by the beginning of its digest. Raises ``UserError`` for a
    digest that is none."""
    found: dict[str, Key] = {}
    for shown in filter(None, (part.strip() for part in given.split(","))):
        _, marked, digest = shown.partition("sha256:")
        if not marked:
            digest = sha256(shown.encode()).hexdigest()
        elif not _DIGEST.fullmatch(digest):
            raise UserError(f"{variable}: sha256: is followed by 64 hexadecimal digits")
        found[digest.lower()] = Key(digest.lower()[:12], digest.lower())
    return list(found.values())


def named(keys: Sequence[Key], more: Sequence[Key]) -> list[Key]:
    """Those of a file and those of the environment; ``UserError`` where one stands in both."""
    known: dict[str, Any] = {key.digest: key for key in keys}
    if any(key.digest in known for key in more):
        raise UserError("a key of RLBUDGET_KEYS stands in the keys file too: leave it out there")
    return [*keys, *more]
