"""What comes in: the body of a request, read within limits, and its path."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import orjson
from starlette.requests import Request as HttpRequest

from rlbudget.errors import UserError

_DEEP = 200
"""levels of a body that are written again without a fault"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the gateway takes."""

    body: int = 4 << 20
    """bytes of a request"""
    upload: float = 60.0
    """seconds that a request may take to come in"""
    requests: int = 1024
    """on their way at once"""
    drain: float = 60.0
    """seconds that running streams are given at the end"""


class UnreadError(Exception):
    """A body that is not read to its end."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


async def content_of(http: HttpRequest, limits: Limits) -> bytes:
    """The body; ``UnreadError`` for one that is too long or comes too slowly."""
    said = http.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limits.body:
        raise UnreadError(413, f"the body has more than {limits.body} bytes")
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.upload):
            async for part in http.stream():
                size += len(part)
                if size > limits.body:
                    raise UnreadError(413, f"the body has more than {limits.body} bytes")
                parts.append(part)
    except TimeoutError:
        raise UnreadError(408, f"the body did not come within {limits.upload:g} s") from None
    return b"".join(parts)


def object_of(content: bytes) -> dict[str, Any]:
    """The JSON object that a body is; ``UserError`` for another."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UserError(f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise UserError("the body must be a JSON object")
    if content.count(b"[") + content.count(b"{") > _DEEP:
        try:
            orjson.dumps(body)  # goes less deep than reading does
        except orjson.JSONEncodeError:
            raise UserError("the body is nested too deeply") from None
    return body


def model_of(content: bytes) -> str:
    """The model that a body names; empty where it names none, as an upload does."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return ""
    return str(body.get("model", "")) if isinstance(body, dict) else ""


def path_of(http: HttpRequest) -> str:
    """The path as it was asked for, percent-encoded; ``UserError`` for one that climbs out of
    ``/v1``."""  # fmt: skip
    path = quote(http.scope["raw_path"], safe="%/:@!$&'()*+,;=~")
    if {".", ".."} & {*re.split(r"[/\\]", unquote(path))}:
        raise UserError("the path must not hold . or .. as a part")
    return path
