"""How a server lies below the messages: heads, bodies, lengths, codings, statuses, silence."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

STREAMS = frozenset({"look", "decode", "answer", "chat"})
"""Calls that are answered by a stream of events."""
ESC = "\x1b]0;owned\x07\x1b[31m"


@dataclass(frozen=True, slots=True)
class Wire:
    """A connection on which a request came."""

    writer: asyncio.StreamWriter
    call: str
    key: str
    """as the client sent it"""
    other: int
    """the port of a server that the client was not told of"""
    good: bytes
    """an event, or a body, as it should be"""

    async def put(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def drip(self, data: bytes, pause: float = 0.1) -> None:
        for byte in data:
            await self.put(bytes([byte]))
            await asyncio.sleep(pause)

    async def flood(self, data: bytes, pause: float = 0.0) -> None:
        while True:
            await self.put(data)
            await asyncio.sleep(pause)

    async def body(self, data: bytes, status: str = "200 OK", **more: str) -> None:
        """A whole answer; of a stream its events."""
        if self.call not in STREAMS or status[:3] != "200":
            more["Content_Length"] = str(len(data))
        await self.put(self.head(status, **more) + data)

    def head(self, status: str = "200 OK", **more: str) -> bytes:
        kind = "text/event-stream" if self.call in STREAMS else "application/json"
        lines = {"Content-Type": kind, "Connection": "close"}
        lines |= {name.replace("_", "-"): value for name, value in more.items()}
        fields = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in lines.items())]
        return "\r\n".join([*fields, "", ""]).encode()

    def framed(self, text: bytes) -> bytes:
        """As an event where the call is a stream."""
        return b"data: " + text + b"\n\n" if self.call in STREAMS else text

    def reset(self) -> None:
        sock: Any = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Attack = Callable[[Wire], Awaitable[None]]


async def forever(_: Wire) -> None:
    await asyncio.sleep(3600)


def after(data: Callable[[Wire], bytes], then: Attack) -> Attack:
    async def attack(wire: Wire) -> None:
        await wire.put(data(wire))
        await then(wire)

    return attack


def whole(text: bytes | Callable[[Wire], bytes], status: str = "200 OK", **more: str) -> Attack:
    async def attack(wire: Wire) -> None:
        said = text(wire) if callable(text) else text
        await wire.body(said, status, **{n: v.format(other=wire.other) for n, v in more.items()})

    return attack


def flood(start: bytes, unit: bytes, pause: float = 0.0) -> Attack:
    return after(lambda _: start, lambda wire: wire.flood(unit, pause))


def headed(unit: bytes, pause: float = 0.0, status: str = "200 OK", start: bytes = b"") -> Attack:
    """A flood after an honest head."""
    return after(lambda wire: wire.head(status) + start, lambda wire: wire.flood(unit, pause))


def good(
    change: Callable[[bytes], bytes] = bytes, then: Attack | None = None, **more: str
) -> Attack:
    """The right body under other headers."""

    async def attack(wire: Wire) -> None:
        await wire.put(wire.head(**more) + change(wire.good))
        if then is not None:
            await then(wire)

    return attack


def chunked(start: bytes, then: Attack | None = None) -> Attack:
    return good(lambda _: start, then, Transfer_Encoding="chunked")


def said(text: bytes) -> Attack:
    return lambda wire: wire.body(wire.framed(text))


def raw(data: bytes) -> Attack:
    return lambda wire: wire.put(data)


def bomb(coding: str, bits: int, unit: bytes) -> Attack:
    async def attack(wire: Wire) -> None:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, bits)
        block = squeeze.compress(unit * (10**6 // len(unit)))
        await wire.put(wire.head(Content_Encoding=coding) + block)
        for _ in range(5000):
            await wire.put(squeeze.compress(unit * (10**6 // len(unit))))

    return attack


def gzipped(data: bytes) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    return squeeze.compress(data) + squeeze.flush()


async def _reset_mid(wire: Wire) -> None:
    await wire.put(wire.head() + wire.good[:40])
    await asyncio.sleep(0.05)
    wire.reset()


async def _reset(wire: Wire) -> None:
    wire.reset()


async def _many_headers(wire: Wire) -> None:
    await wire.put(b"HTTP/1.1 200 OK\r\n")
    number = 0
    while True:
        await wire.put(b"".join(b"X-%d: y\r\n" % (number + n) for n in range(200)))
        number += 200


async def _one_byte_chunks(wire: Wire) -> None:
    await wire.put(wire.head(Transfer_Encoding="chunked"))
    for byte in wire.good * 100:
        await wire.put(b"1\r\n" + bytes([byte]) + b"\r\n")
        await asyncio.sleep(0.1)


def _echo(wire: Wire) -> bytes:
    words = f"{ESC}bad key {wire.key}\r\n\tin Bearer {wire.key}"
    return json.dumps({"error": {"message": words}}).encode()


def _echo_text(wire: Wire) -> bytes:
    url = f"http://u:{wire.key}@h/?api_key={wire.key}"
    return f"{ESC}Authorization: Bearer {wire.key}\nX-Url: {url}\n".encode()


def _echo_split(wire: Wire) -> bytes:
    return ("\x00".join(wire.key) + " " + "\u200b".join(wire.key)).encode()


DEEP = b"[" * 100_000
TRANSPORT: dict[str, Attack] = {
    "hang": forever,
    "hang after the head": after(lambda w: w.head(), forever),
    "hang in the body": good(lambda body: body[:-9], forever),
    "close": raw(b""),
    "reset": _reset,
    "close in the head": raw(b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "close in the body": good(lambda body: body[:-9]),
    "reset in the body": _reset_mid,
    "garbage": raw(b"\x00\xff\xfegarbage\r\n\r\n"),
    "no head": lambda w: w.put(w.good),
    "HTTP/2": raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/9.9": raw(b"HTTP/9.9 200 OK\r\n\r\n{}"),
    "drip of the head": lambda w: w.drip(w.head() + w.good),
    "drip of headers": flood(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", 0.1),
    "drip of the body": after(lambda w: w.head(), lambda w: w.drip(w.good * 100)),
    "drip of chunks of a byte": _one_byte_chunks,
    "headers without end": _many_headers,
    "a header without end": flood(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65536),
    "a header of 1 MB": raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10**6 + b"\r\n\r\n{}"),
    "a status line of 1 MB": raw(b"HTTP/1.1 200 " + b"O" * 10**6 + b"\r\n\r\n{}"),
    "1,000 cookies": raw(b"HTTP/1.1 200 OK\r\n" + b"Set-Cookie: a=b\r\n" * 1000 + b"\r\n{}"),
    "a line without end": headed(b"y" * 65536, start=b"data: "),
    "line breaks without end": headed(b"\n" * 65536),
    "spaces without end": headed(b" " * 65536),
    "an error without end": headed(b"z" * 65536, status="500 X"),
    "a refusal without end": headed(b"z" * 65536, status="400 X"),
    "drip of an error": headed(b"z", 0.1, status="500 X"),
    "gzip bomb of zeros": bomb("gzip", 31, b"\0"),
    "gzip bomb of comments": bomb("gzip", 31, b": ping\n\n"),
    "gzip bomb of spaces": bomb("gzip", 31, b" "),
    "deflate bomb": bomb("deflate", 15, b"\0"),
    "br bomb": good(lambda _: b"\x5b" * 10**5, Content_Encoding="br"),
    "zstd": good(lambda _: b"\x28\xb5\x2f\xfd" * 100, Content_Encoding="zstd"),
    "gzip that breaks off": good(lambda body: gzipped(body)[:-9], Content_Encoding="gzip"),
    "gzip that is none": good(Content_Encoding="gzip"),
    "gzip of gzip": good(lambda b: gzipped(gzipped(b)), Content_Encoding="gzip, gzip"),
    "honest gzip": good(gzipped, Content_Encoding="gzip"),
    "a chunk of no size": chunked(b"zz\r\n{}"),
    "a chunk of negative size": chunked(b"-5\r\n{}"),
    "a chunk of 2**64 bytes": chunked(b"f" * 16 + b"\r\n", forever),
    "a chunk extension without end": chunked(b"5;", lambda w: w.flood(b"e" * 65536)),
    "chunks that break off": chunked(b"5\r\nda"),
    "trailers without end": chunked(b"0\r\n", lambda w: w.flood(b"X-T: t\r\n" * 500)),
    "a length too long": good(Content_Length="99999999"),
    "a length too long, and silence": good(then=forever, Content_Length="99999999"),
    "a length too short": good(Content_Length="20"),
    "a negative length": good(Content_Length="-5"),
    "a length that is no number": good(Content_Length="lots"),
    "two lengths": good(Content_Length="5\r\nContent-Length: 7"),
    "a length and chunks": good(Content_Length="5", Transfer_Encoding="chunked"),
    "a redirect elsewhere": whole(b"", "302 X", Location="http://127.0.0.1:{other}/stolen"),
    "a redirect that keeps the body": whole(b"", "307 X", Location="http://127.0.0.1:{other}/stolen"),
    "a redirect to itself": whole(b"", "301 X", Location="/"),
    "100 without end": lambda w: w.flood(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "102, slowly": lambda w: w.flood(b"HTTP/1.1 102 Processing\r\n\r\n", 0.2),
    "101": raw(b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + b"x" * 99),
    "204": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "206": whole(b"{}", "206 Partial"),
    "a status of 999": whole(b"{}", "999 X"),
    "HTML": whole(b"<!doctype html><html><body>Sign in</body></html>"),
    "401 with the key": whole(_echo, "401 X"),
    "400 with the key": whole(_echo, "400 X"),
    "400 with the key in plain text": whole(_echo_text, "400 X"),
    "500 with the key in pieces": whole(_echo_split, "500 X"),
    "500 with the key": whole(_echo, "500 X"),
    "429 for ever": whole(b"{}", "429 X", Retry_After="1"),
    "429 for a billion seconds": whole(b"{}", "429 X", Retry_After="1000000000"),
    "503 until a date that is none": whole(b"{}", "503 X", Retry_After="Mon, 99 Jan 99999"),
    "400 deep": whole(DEEP, "400 X"),
    "400 of a number": whole(b"5", "400 X"),
    "400 of a list": whole(b'[{"error": 1}]', "400 X"),
    "deep": said(DEEP),
    "deep in a field that nobody reads": said(b'{"zzz":' + DEEP + b"]" * 100_000 + b"}"),
    "deep in an error": said(b'{"error":' + b'{"message":' * 5000 + b"1" + b"}" * 5001),
    "null": said(b"null"),
    "a list": said(b"[1, 2]"),
    "a number of 100,000 digits": said(b'{"data": ' + b"9" * 100_000 + b"}"),
    "half a character": said(b'{"id": "\xe2\x82"}'),
    "a lone surrogate": said(b'{"id": "\\ud800"}'),
    "not UTF-8": said(b'{"id": "\xff\xfe"}'),
    "a byte order mark in UTF-16": said('{"id": "x"}'.encode("utf-16")),
    "NaN": said(b"NaN"),
}  # fmt: skip
"""What any call can be answered with."""
