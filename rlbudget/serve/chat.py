"""OpenAI's forms of an answer: chat and text completions, whole or as chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from rlbudget.serve.shown import Piece, joined

DONE = b"data: [DONE]\n\n"
_END_CHAT = b'},"finish_reason":null}]}\n\n'
_END_TEXT = b',"logprobs":null,"finish_reason":null}]}\n\n'


@dataclass(slots=True)
class Form:
    """How one answer is written."""

    kind: Literal["chat", "text"]
    model: str
    """the name that the client asked for"""
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    _role: bool = False
    _first: bytes = b""
    _next: bytes = b""

    def __post_init__(self) -> None:
        if not self.id:
            self.id = ("chatcmpl-" if self.kind == "chat" else "cmpl-") + uuid.uuid4().hex
        # All of an event but its text is made once.
        head = b"data: " + orjson.dumps(self._head(chunk=True))[:-1]
        if self.kind == "text":
            self._first = self._next = head + b',"choices":[{"index":0,"text":'
        else:
            self._next = head + b',"choices":[{"index":0,"delta":{'
            self._first = self._next + b'"role":"assistant",'

    def chunks(self, pieces: Sequence[Piece]) -> bytes:
        """The events of a stream that show these pieces."""
        return b"".join(map(self._chunk, joined(pieces)))

    def _chunk(self, piece: Piece) -> bytes:
        text = orjson.dumps(piece.text)
        head, self._role = self._first if not self._role else self._next, True
        if self.kind == "text":
            return b"%b%b%b" % (head, text, _END_TEXT)
        if piece.kind == "answer":
            return b'%b"content":%b%b' % (head, text, _END_CHAT)
        # Both names are read: the first by most clients, the second by vLLM's.
        return b'%b"reasoning_content":%b,"reasoning":%b%b' % (head, text, text, _END_CHAT)

    def last(self, finish: str, ours: Mapping[str, Any]) -> bytes:
        """The event that ends an answer; ``ours`` is what the gateway says of it."""
        shown: dict[str, Any] = {"text": ""} if self.kind == "text" else {"delta": {}}
        return self._event(shown, finish, rlbudget=ours)

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """The event that tells what it cost, for a client that asked for it."""
        return (
            b"data: "
            + orjson.dumps({**self._head(chunk=True), "choices": [], "usage": usage})
            + b"\n\n"
        )

    def whole(
        self, pieces: list[Piece], finish: str, usage: Mapping[str, Any], ours: Mapping[str, Any]
    ) -> bytes:
        """The body of an answer that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.kind == "text":
            choice["text"] = "".join(piece.text for piece in pieces)
        else:
            thoughts = "".join(piece.text for piece in pieces if piece.kind == "thought")
            choice["message"] = {
                "role": "assistant",
                "content": "".join(piece.text for piece in pieces if piece.kind == "answer"),
                "reasoning_content": thoughts,
                "reasoning": thoughts,
            }
        body = {**self._head(chunk=False), "choices": [choice], "usage": usage, "rlbudget": ours}
        return orjson.dumps(body)

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion" if self.kind == "text" else "chat.completion"
        if chunk and self.kind == "chat":
            kind += ".chunk"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _event(self, shown: Mapping[str, Any], finish: str | None, **more: Any) -> bytes:
        choice = {"index": 0, **shown, "finish_reason": finish}
        return (
            b"data: "
            + orjson.dumps({**self._head(chunk=True), "choices": [choice], **more})
            + b"\n\n"
        )


def error_body(status: int, message: str, *, param: str | None = None) -> bytes:
    """An error in OpenAI's form."""
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    error = {"message": message, "type": kind, "param": param, "code": status}
    return orjson.dumps({"error": error})


def error_event(status: int, message: str) -> bytes:
    """The same in the middle of a stream."""
    return b"data: " + error_body(status, message) + b"\n\n"
