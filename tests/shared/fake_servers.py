"""Servers on loopback that say what a test tells them: chunks of a stream, statuses, JSON."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

Play = Callable[[dict[str, Any]], Iterator[Any]]
"""From a request's body: choices (dict), raw bytes, or first (status, JSON, headers)."""


class Handler(http.server.BaseHTTPRequestHandler):
    """JSON in and out, and streams of events."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> dict[str, Any]:
        size = int(self.headers.get("content-length") or 0)
        return dict(json.loads(self.rfile.read(size) or b"{}"))

    def send_json(self, value: Any, status: int = 200, headers: Sequence[Any] = ()) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, said in [("Content-Length", str(len(data))), *headers]:
            self.send_header(name, said)
        self.end_headers()
        self.wfile.write(data)

    def send_events(self, blocks: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with suppress(BrokenPipeError, ConnectionResetError):
            for block in blocks:
                self.wfile.write(block)
                self.wfile.flush()


@contextmanager
def listening(handler: type[Handler]) -> Iterator[str]:
    """The address of a running server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def completions_server(play: Play, asked: list[dict[str, Any]]) -> Iterator[str]:
    """The address, up to ``/v1``, of a server that streams what ``play`` says of each request."""

    class Fake(Handler):
        def do_GET(self) -> None:
            self.send_json({"data": [{"id": "m", "object": "model"}]})

        def do_POST(self) -> None:
            asked.append(self.body())
            told = play(asked[-1])
            first = next(told, None)
            if isinstance(first, tuple):
                self.send_json(first[1], first[0], first[2] if len(first) > 2 else ())
            else:
                self.send_events(framed(first, told))

    with listening(Fake) as url:
        yield url + "/v1"


def framed(first: Any, told: Iterator[Any]) -> Iterator[bytes]:
    """Choices as events, raw bytes as they are, and ``[DONE]``."""
    said = first
    while said is not None:
        yield said if isinstance(said, bytes) else event([{"index": 0, **said}])
        said = next(told, None)
    yield b"data: [DONE]\n\n"


def event(choices: Any, **more: Any) -> bytes:
    """One chunk."""
    return b"data: " + json.dumps({"id": "c", "choices": choices, **more}).encode() + b"\n\n"


def vllm_chunk(token: int, text: str, finish: str | None = None) -> dict[str, Any]:
    """A choice of one token as vLLM writes it, with 20 alternatives."""
    names = [f"token_id:{i}" for i in [token, *range(10, 29)]]
    top = {name: -0.1 - 0.2 * i for i, name in enumerate(names)}
    logprobs = {"tokens": names[:1], "token_logprobs": [-0.1], "top_logprobs": [top]}
    return {"text": text, "finish_reason": finish, "logprobs": logprobs, "token_ids": [token]}


def llama_chunk(token: int, text: str, finish: str | None = None) -> dict[str, Any]:
    """A choice as llama-server writes it: the entry of the last token alone."""
    top = [{"id": i, "token": "x", "logprob": -0.1 * n} for n, i in enumerate([token, *range(20)])]
    entry = {"id": token, "token": text, "logprob": -0.1, "top_logprobs": top}
    return {"text": text, "finish_reason": finish, "logprobs": {"content": [entry]}}
