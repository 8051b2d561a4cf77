"""The address of a server and its key, and what it says turned into one line without that key."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec

from rlbudget.errors import UserError, missing_extra

try:
    import yarl
except ModuleNotFoundError as missing:
    raise missing_extra("serve", "aiohttp") from missing

SHOWN = 300
"""Characters of a server's words that a message shows."""

_AGAIN = frozenset({408, 409, 425, 429})
_KEYS = (
    (re.compile(r"(?i)\b(bearer|basic)[\s:]+[^\s\"',;]+"), r"\1 ***"),
    (re.compile(r"(?i)([?&][\w.-]*(?:key|token|secret|passw|auth|sig)[\w.-]*=)[^&\s]+"), r"\1***"),
    (re.compile(r"://[^/\s@]+@"), "://***@"),
    (re.compile(r"\b(?:sk|pk|hf|gsk|xai)[-_][\w-]{6,}"), "***"),
)  # fmt: skip
"""How keys look, other people's too."""


class ServerError(ConnectionError):
    """The server failed, in one line; nothing that the caller said was wrong.

    ``wait`` is how many seconds it asked to be left alone; None where it did not ask.
    """

    def __init__(self, said: str, wait: float | None = None) -> None:
        super().__init__(said)
        self.wait = wait


class KeyRefusedError(UserError):
    """The server does not accept the key, whatever is asked of it."""


@dataclass(frozen=True, slots=True)
class Site:
    """The address of a server, and how its answers are read."""

    url: str = field(repr=False)
    """without credentials; its query goes with every request"""
    name: str
    """the address without anything secret"""
    authorization: str | None = field(repr=False)
    """the header's value"""
    secrets: tuple[str, ...] = field(repr=False)
    """must never show in a message, however they are written; the longest first"""

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        given = {"Authorization": self.authorization} if self.authorization else {}
        asked = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return asked | given

    def at(self, path: str) -> yarl.URL:
        """The address of a resource below."""
        return _below(self.url, path)

    def check(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        """Raise what a status other than 200 means; ``content`` is its body, perhaps cut short."""
        if status != 200:
            said: Any = content.decode(errors="replace")
            with suppress(msgspec.MsgspecError, ValueError, RecursionError):
                said = msgspec.json.decode(content)
            if 300 <= status < 400:
                said = "it redirects, and a key is not carried elsewhere: name the final address"
            self.refuse(status, said, retry_after(headers))

    def refuse(self, status: int, content: Any, wait: float | None = None) -> None:
        """Raise what an answer of this status means."""
        said = self.clean(words(content))
        if status >= 500 or status in _AGAIN:
            raise ServerError(f"{self.name}: status {status}: {said}", wait)
        if status in (401, 403):
            raise KeyRefusedError(f"{self.name} does not accept the key (status {status})")
        raise UserError(f"{self.name} refuses the request (status {status}): {said}")

    def check_error(self, error: Any) -> None:
        """Raise the error that a stream holds: servers have said 200 when it comes."""
        if error:
            code = error.get("code") if isinstance(error, dict) else None
            if isinstance(code, int) and 400 <= code < 600:
                self.refuse(code, error)
            raise ServerError(f"{self.name}: {self.clean(words(error))}")

    def fault(self, error: Exception, *, sent: bool = False) -> ServerError:
        """What an error on the way to the server, or in what it ``sent``, is to the caller."""
        deep = isinstance(error, RecursionError)
        what = "it is nested too deeply" if deep else self.clean(str(error))
        what = what or type(error).__name__
        return ServerError(
            f"{self.name}: it sent what cannot be read ({what})" if sent else f"{self.name}: {what}"
        )

    def clean(self, text: str) -> str:
        """One short line without keys and control characters."""
        shown = "".join(filter(str.isprintable, " ".join(text[:100_000].split())))
        for secret in self.secrets:
            shown = re.sub(re.escape(secret), "***", shown, flags=re.IGNORECASE)
        for pattern, instead in _KEYS:
            shown = pattern.sub(instead, shown)
        return shown if len(shown) <= SHOWN else shown[:SHOWN].rstrip() + "…"


@lru_cache(maxsize=256)
def _below(url: str, path: str) -> yarl.URL:
    base = yarl.URL(url)
    whole = f"{base.raw_path.rstrip('/')}/{path.lstrip('/')}"
    return base.with_path(whole, encoded=True, keep_query=True)


def find_site(url: str, key: str | None, example: str) -> Site:
    """Check an address and a key; ``UserError`` shows ``example`` where it is none.

    A name and a password in the address are sent as a header where there is no ``key``.
    """
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError("the key holds a character that a header cannot: a line break, perhaps")
    try:
        at = yarl.URL(url)
        if at.scheme not in ("http", "https") or not at.host or not url.isprintable():
            raise ValueError
        plain = at.with_user(None).with_fragment(None)
        name = f"{at.scheme}://{at.host_port_subcomponent}{at.raw_path}".rstrip("/")
    except (ValueError, TypeError):
        raise UserError(f"the server's address must look like {example}") from None
    basic = f"{at.user or ''}:{at.password or ''}"
    encoded = base64.b64encode(basic.encode()).decode()
    authorization = f"Bearer {key}" if key else f"Basic {encoded}" if basic != ":" else None
    hidden = [key, at.password, encoded if basic != ":" else None]
    hidden += [value for value in at.query.values() if len(value) > 4]
    return Site(str(plain), name, authorization, _spellings([one for one in hidden if one]))


def _spellings(secrets: list[str]) -> tuple[str, ...]:
    """The ways in which a server can write secrets back, the longest first."""
    found: set[str] = set()
    for one in secrets:
        escaped = msgspec.json.encode(one).decode()[1:-1]
        coded = base64.b64encode(one.encode()).decode().rstrip("=")
        found |= {one, quote(one, safe=""), quote_plus(one), escaped}
        found |= {coded} if len(coded) > 8 else set()
    return tuple(sorted(found, key=lambda one: (-len(one), one)))


def words(content: Any) -> str:
    """What a server says of an error, wherever it puts it."""
    error = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    if isinstance(error, str):
        return error
    try:
        return msgspec.json.encode(error).decode()
    except (msgspec.MsgspecError, RecursionError, TypeError, ValueError):
        return "an error that is nested too deeply"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to be left alone: ``Retry-After``, a number or an HTTP date."""
    said = headers.get("retry-after", "").strip()
    try:
        if said.replace(".", "", 1).isdecimal():
            return float(said)
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
