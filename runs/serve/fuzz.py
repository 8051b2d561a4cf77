"""2,000 fuzzed requests and upstream streams: no 500, no hang, no leak of a key.

    python -m runs.serve.fuzz [--bodies 1200] [--streams 800] [--seed 0]

``rlbudget serve`` in its own process, with keys for its clients and one for its upstream, before a
server of this script's. Bodies, headers and streams begin as good ones and are changed at random:
values of other types at any field, fields that nobody knows, bytes turned, cut out, doubled or put
in. A request must be answered in time by an answer or by an error in OpenAI's form, and never by
500; a broken stream may end in 502, or in an error event. No key may show in an answer or a log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runs.common import row, write_part
from runs.serve.fuzzed import body_bytes, headers, stream_bytes
from runs.serve.peers import Process, reluctant, scratch, serving
from runs.serve.replay_upstream import Script, make_script

CLIENT_KEY, UPSTREAM_KEY = "sk-CLIENTS-SECRET-31415", "sk-UPSTREAMS-SECRET-27182"
TOKENS = 60
SECONDS = 20.0
"""that an answer may take: the gateway's own time-out and its repetitions, on a busy machine"""
TIMEOUT = "3"
AT_ONCE = 8


@dataclass(slots=True)
class Found:
    """What came of the requests."""

    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Upstream:
    """A server that changes streams by the random numbers of ``seed`` and of a request's own, where
    it is not None."""  # fmt: skip

    def __init__(self, script: Script) -> None:
        self.script = script
        self.seed: int | None = None
        self.asked: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            said = head.partition(b"content-length:")[2].partition(b"\r\n")[0].strip() or b"0"
            body = await reader.readexactly(int(said))
            writer.write(self._answer(head.split(b" ", 2)[1], body))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    def _answer(self, path: bytes, body: bytes) -> bytes:
        if path.endswith(b"/models"):
            return answered({"object": "list", "data": [{"id": "replay", "owned_by": "vllm",
                             "max_model_len": 4096}]})  # fmt: skip
        if path == b"/tokenize":
            return answered({"count": 9, "tokens": self.script.prompt})
        if not path.endswith(b"/completions"):
            return answered({"said": "something"})
        said = json.loads(body) if body[:1] == b"{" and path.count(b"chat") == 0 else {}
        n = said.get("max_tokens", TOKENS) if isinstance(said, dict) else TOKENS
        most = min(n if isinstance(n, int) and n > 0 else TOKENS, TOKENS)
        events = self.script.events(most, top=20)
        own = str(said.get("seed"))
        self.asked[own] += 1
        again = f"{self.seed} {own} {self.asked[own]}"
        drawn = None if self.seed is None else random.Random(again)
        content = stream_bytes(events, drawn)
        return (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
                + content)  # fmt: skip


def answered(value: Any) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body), body)  # fmt: skip


@contextmanager
def listening(upstream: Upstream) -> Iterator[str]:
    """Its address, while it answers in a thread."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(upstream.serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bodies", type=int, default=1200)
    parser.add_argument("--streams", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="put the row into the results")
    args = parser.parse_args()
    upstream = Upstream(make_script())
    os.environ |= {"RLBUDGET_KEYS": CLIENT_KEY, "RLBUDGET_UPSTREAM_KEY": UPSTREAM_KEY}
    bodies, streams = Found(), Found()
    with scratch() as folder, listening(upstream) as url:
        plan = folder / "plan.toml"
        plan.write_text(f'policy = "{reluctant(folder)}"\n[audit]\nlog = "{folder}/log"\n')
        with serving(plan, url, folder, "--timeout", TIMEOUT) as gateway:
            known = [("content-type", "application/json"),
                     ("authorization", f"Bearer {CLIENT_KEY}")]  # fmt: skip

            def of_body(n: int) -> None:
                drawn = random.Random(f"{args.seed} body {n}")
                ask(gateway, bodies, f"body {n}", body_bytes(drawn), headers(drawn, CLIENT_KEY))

            def of_stream(n: int) -> None:
                ask(gateway, streams, f"stream {n}", good(n), known)

            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(of_body, range(args.bodies)))
                upstream.seed = args.seed
                list(pool.map(of_stream, range(args.streams)))
            upstream.seed = None
            end = Found()
            ask(gateway, end, "afterwards", good(1), known)
            leaks = leaked(folder)
    wrong = [*bodies.wrong, *streams.wrong, *end.wrong, *leaks]
    n = args.bodies + args.streams
    rows = [
        row(f"{args.bodies:,} fuzzed bodies and {args.streams:,} fuzzed streams",
            "no 500, no hang, no leak of a key",
            f"{len(wrong)} of {n:,}; the slowest took {max(bodies.slowest, streams.slowest):.1f} s",
            not wrong),
    ]  # fmt: skip
    details = {"bodies": dict(bodies.kinds.most_common()), "streams":
               dict(streams.kinds.most_common()), "wrong": wrong[:20]}  # fmt: skip
    if args.keep:
        write_part("gateway", "fuzz", rows, seeds=[args.seed], **details)
    else:
        print(json.dumps({"rows": rows, **details}, indent=1))


def good(n: int) -> bytes:
    """A request that nothing is wrong with."""
    return json.dumps({
        "model": "replay", "messages": [{"role": "user", "content": "1 + 1 ="}], "seed": n,
        "max_tokens": TOKENS, "stream": bool(n % 2),
    }).encode()  # fmt: skip


def ask(
    gateway: Process, found: Found, name: str, body: bytes, given: list[tuple[str, str]]
) -> None:
    """Send it, and judge what comes back."""
    host, _, port = gateway.root.removeprefix("http://").partition(":")
    head = [f"POST {path_of(name)} HTTP/1.1", "host: x", "connection: close",
            f"content-length: {len(body)}", *(f"{n}: {v}" for n, v in given)]  # fmt: skip
    begun, answer = time.monotonic(), b""
    try:
        with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
            connection.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)
            while part := connection.recv(1 << 16):
                answer += part
    except OSError as error:
        if not whole(answer):  # else it was refused before all of its body was read
            found.wrong.append(f"{name}: {type(error).__name__} after {len(answer)} bytes")
            return
    found.slowest = max(found.slowest, time.monotonic() - begun)
    kind, fault = judged(answer)
    found.kinds[kind] += 1
    if fault:
        found.wrong.append(f"{name}: {fault}: {answer[:300]!r} ... {answer[-200:]!r}")


def whole(answer: bytes) -> bool:
    """Whether an answer of a told length is all there."""
    head, ended, rest = answer.partition(b"\r\n\r\n")
    said = re.search(rb"content-length: (\d+)", head.lower())
    return bool(ended) and said is not None and len(rest) == int(said[1])


def path_of(name: str) -> str:
    """Every fifth body is sent as a text completion."""
    return "/v1/completions" if name.endswith(("3", "8")) and name[0] == "b" else (
        "/v1/chat/completions")  # fmt: skip


def judged(answer: bytes) -> tuple[str, str]:
    """The kind of an answer, and what is wrong with it."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if any(key.encode() in answer for key in (CLIENT_KEY, UPSTREAM_KEY)):
        return "leak", "a key is shown"
    if not head.startswith(b"HTTP/1.1 ") or not head[9:12].isdigit():
        return "no answer", "no answer"
    status = int(head[9:12])
    if status == 500 or b'"code":500' in rest:
        return "500", "a 500"
    if status != 200:
        if rest == b"Invalid HTTP request received.":
            return f"{status}, no HTTP", "" if status == 400 else "another status"
        try:
            error = json.loads(rest)["error"]
            proper = {*error} == {"message", "type", "param", "code"} and bool(error["message"])
        except (ValueError, KeyError, TypeError):
            return f"{status}", "no error in OpenAI's form"
        return f"{status}", "" if proper else "no error in OpenAI's form"
    if b"text/event-stream" in head.lower():
        if b"data: [DONE]" in rest:
            return "200, a stream", ""
        event = b'data: {"error":' in rest
        return "200, an error event" if event else "200, cut", ""
    return "200, whole", ""


def leaked(folder: Path) -> list[str]:
    """Files of the gateway's that show a key."""
    files = [folder / "gateway.log", *(folder / "log").rglob("*")]
    return [
        f"{file.name} shows a key" for file in files
        if file.is_file() and any(key in file.read_text(errors="replace")
                                  for key in (CLIENT_KEY, UPSTREAM_KEY))
    ]  # fmt: skip


if __name__ == "__main__":
    main()
