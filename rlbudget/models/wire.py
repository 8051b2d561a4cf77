"""What the clients of servers share: addresses, statuses, patience, streams of events, sampling."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from rlbudget.errors import UserError, missing_extra

try:
    import httpx as httpx
    import orjson
except ModuleNotFoundError as missing:
    if missing.name not in ("httpx", "orjson"):
        raise
    raise missing_extra("serve", missing.name) from None

NEUTRAL: Mapping[str, Any] = {
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
}
"""The model's own distribution. Said in every request: a server's defaults may be others."""

BROKEN = frozenset({"abort", "aborted", "cancelled", "canceled", "error", "timeout"})
"""Finish reasons of a request that the server gave up: a fault, not an end."""

_PAUSE = 0.1
_AGAIN = frozenset({408, 409, 425, 429})
_LINE_END = re.compile(rb"\r\n|\r|\n")


class ServerError(ConnectionError):
    """The server failed, in one line; nothing that the caller said was wrong.

    ``wait`` is how many seconds it asked to be left alone; None where it did not ask.
    """

    def __init__(self, said: str, wait: float | None = None) -> None:
        super().__init__(said)
        self.wait = wait


@dataclass(slots=True)
class Patience:
    """The faults and the seconds of waiting that one decode bears."""

    faults: int
    """how many it survives"""
    seconds: float
    """how long it waits in all for servers that ask for it"""
    waited: float = 0.0
    met: int = 0
    asked: int = 0

    def pause(self, error: ServerError) -> float:
        """Seconds until one may ask again; raises ``ServerError`` where it is enough."""
        if error.wait is None or not self.faults:
            self.met += 1
        else:
            self.asked += 1
        pause = max(error.wait or 0.0, _PAUSE * 2.0 ** (self.met + self.asked - 1))
        self.waited += pause if error.wait is not None else 0.0
        if self.met > self.faults:
            raise ServerError(f"{error} (given up after {self.met} faults)")
        if self.waited > self.seconds:
            raise ServerError(
                f"{error} (given up: it asks for {pause:.0f} s, and all waiting may take"
                f" {self.seconds:g} s)"
            )
        return pause


@dataclass(frozen=True, slots=True)
class Site:
    """The address of a server, and how its answers are read."""

    url: str = field(repr=False)
    name: str
    """the address without anything secret"""
    secret: str | None = field(repr=False)
    """must never show in a message"""

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        given = {"Authorization": f"Bearer {self.secret}"} if self.secret else {}
        return {"Content-Type": "application/json"} | given

    def check(self, response: httpx.Response) -> None:
        """Raise what a status other than 200 means; the content must have been read."""
        if response.status_code != 200:
            try:
                content = orjson.loads(response.content)
            except orjson.JSONDecodeError:
                content = response.content.decode(errors="replace")
            self.refuse(response.status_code, content, retry_after(response.headers))

    def refuse(self, status: int, content: Any, wait: float | None = None) -> None:
        """Raise what an answer of this status means."""
        said = self.clean(_message(content))
        if status >= 500 or status in _AGAIN:
            raise ServerError(f"{self.name}: status {status}: {said}", wait)
        if status in (401, 403):
            raise UserError(f"{self.name} does not accept the key (status {status})")
        raise UserError(f"{self.name} refuses the request (status {status}): {said}")

    def check_event(self, event: Mapping[str, Any]) -> None:
        """Raise the error that a stream holds: servers have said 200 when it comes."""
        if error := event.get("error"):
            code = error.get("code") if isinstance(error, dict) else None
            if isinstance(code, int) and 400 <= code < 600:
                self.refuse(code, event)
            raise ServerError(f"{self.name}: {self.clean(_message(event))}")

    def fault(self, error: Exception) -> ServerError:
        """What an error on the way to the server, or in what it sent, is to the caller."""
        what = self.clean(str(error)) or type(error).__name__
        if not isinstance(error, httpx.TransportError):
            what = f"it sent what cannot be read ({what})"
        return ServerError(f"{self.name}: {what}")

    def clean(self, text: str) -> str:
        """One line without the key."""
        hidden = text.replace(self.secret, "***") if self.secret else text
        return " ".join(hidden.split())[:300]


def find_site(url: str, key: str | None, example: str) -> Site:
    """Check an address and a key; ``UserError`` shows ``example`` where it is none."""
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError("the key holds a character that a header cannot: a line break, perhaps")
    try:
        at = httpx.URL(url)
        if at.scheme not in ("http", "https") or not at.host:
            raise httpx.InvalidURL("")
    except (httpx.InvalidURL, UnicodeError):
        raise UserError(f"the server's address must look like {example}") from None
    port = f":{at.port}" if at.port else ""
    return Site(url, f"{at.scheme}://{at.host}{port}{at.path}".rstrip("/"), key)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to be left alone: ``Retry-After``, a number or an HTTP date."""
    said = headers.get("retry-after", "").strip()
    try:
        if said.replace(".", "", 1).isdecimal():
            return float(said)
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


class Events:
    """The JSON objects of a stream of server-sent events, fed with blocks cut at any byte."""

    __slots__ = ("_after_return", "_data", "_kind", "_rest", "done")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._after_return = False
        self._data: list[bytes] = []
        self._kind = b""
        self.done = False
        """whether ``[DONE]`` was said"""

    def feed(self, block: bytes) -> Iterator[dict[str, Any]]:
        """The objects that end in this block; ``ValueError`` for data that is no JSON."""
        if self._after_return and block[:1] == b"\n":
            block = block[1:]
        self._after_return = block.endswith(b"\r")
        first, *others = _LINE_END.split(block)
        self._rest += first
        for other in others:
            line, self._rest = bytes(self._rest), bytearray(other)
            yield from self._take(line.removeprefix(b"\xef\xbb\xbf"))

    def close(self) -> Iterator[dict[str, Any]]:
        """What stands before an end without an empty line."""
        yield from self.feed(b"\n\n")

    def _take(self, line: bytes) -> Iterator[dict[str, Any]]:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._kind = value.strip()
        elif not line:
            kind, data = self._kind, self._data
            self._kind, self._data = b"", []
            # Some servers leave the empty line out: then each line is a whole object.
            whole = len(data) > 1 and _is_whole(data[0])
            for part in data if whole else [b"\n".join(data)]:
                self.done = self.done or part.strip() == b"[DONE]"
                found = None if self.done or not part.strip() else loads(part)
                if isinstance(found, dict):
                    failed = kind == b"error" and "error" not in found
                    yield {"error": found} if failed else found


def dumps(body: Mapping[str, Any]) -> bytes:
    """A request's body; ``UserError`` for text that is no UTF-8."""
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise UserError(f"the request cannot be sent: {error}") from None


def _is_whole(data: bytes) -> bool:
    try:
        return isinstance(loads(data), dict)
    except ValueError:
        return False


def loads(data: bytes) -> Any:
    """JSON, in which Python servers also write -Infinity and NaN."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def _message(content: Any) -> str:
    error = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)


@dataclass(frozen=True, slots=True)
class Caller:
    """A server that is asked by one thread."""

    site: Site
    client: httpx.Client = field(repr=False)
    retries: int
    """faults that one decode survives"""
    waiting: float
    """seconds that one decode waits in all where the server asks for it"""

    @property
    def patience(self) -> Patience:
        """That of a fresh decode."""
        return Patience(self.retries, self.waiting)

    def ask(
        self, path: str, body: Mapping[str, Any] | None = None, patience: Patience | None = None
    ) -> dict[str, Any]:
        """The JSON object that is answered; ``ServerError`` where patience ends before.

        Without a ``body`` it is a GET. Raises ``UserError`` where the request is refused.
        """
        patience = patience or self.patience
        method, content = "GET" if body is None else "POST", None if body is None else dumps(body)
        while True:
            try:
                response = self.client.request(method, path, content=content)
                self.site.check(response)
                return dict(loads(response.content))
            except UserError:
                raise
            except ServerError as error:
                fault = error
            except (httpx.HTTPError, TypeError, ValueError) as error:
                fault = self.site.fault(error)
            time.sleep(patience.pause(fault))

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects of a stream; ``ServerError`` where it breaks down, ``UserError`` where the
        request is refused."""  # fmt: skip
        events = Events()
        try:
            with self.client.stream("POST", path, content=dumps(body)) as response:
                if response.status_code != 200:
                    response.read()
                self.site.check(response)
                for block in response.iter_bytes():
                    for event in events.feed(block):
                        self.site.check_event(event)
                        yield event
                yield from events.close()
        except (UserError, ServerError):
            raise
        except (httpx.HTTPError, TypeError, ValueError) as error:
            raise self.site.fault(error) from None
