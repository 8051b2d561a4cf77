"""One JSON line a request: who, what, how it ended and at what cost; never a key.

Texts stand in it only where they are asked for.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from rlbudget.errors import UserError
from rlbudget.serve.hooks import Outcome, Steering

_log = logging.getLogger("rlbudget.serve")
_MOST = 16_384
"""characters of a text"""


class Journal:
    """Writes lines to a file, or to standard output; a line that cannot be written is counted."""

    def __init__(
        self, write: Callable[[bytes], Any], *, texts: bool = False,
        close: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.failures = 0
        self._write, self._texts, self._close = write, texts, close

    def part(self) -> Steering:
        """The part that hears of completions."""
        return Steering("journal", after=self.completion, running=self._running)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            if self._close is not None:
                self._close()

    def completion(self, outcome: Outcome) -> None:
        """A chat or text completion is over."""
        arrival = outcome.arrival
        line: dict[str, Any] = {
            "id": arrival.id, "kind": arrival.kind, "model": arrival.model, "key": arrival.key,
            "ended": outcome.ended, "status": outcome.status,
            "seconds": round(outcome.seconds, 6), "policy": arrival.wanted.name,
            "arm": arrival.arm, "stream": bool(arrival.body.get("stream")),
        }  # fmt: skip
        if outcome.token_price is not None:
            line |= {
                "reason": outcome.reason, "stop_probability": outcome.stop_probability,
                "token_price": outcome.token_price, "effort": arrival.wanted.dial.effort,
                "prompt_tokens": outcome.prompt_tokens,
                "thinking_tokens": outcome.thinking_tokens, "probe_tokens": outcome.probe_tokens,
                "answer_tokens": outcome.answer_tokens, "saved_tokens": outcome.saved_tokens,
                "audited": outcome.audited, "first_seconds": outcome.first_seconds,
            }  # fmt: skip
        if self._texts:
            line["question"] = str((arrival.wanted.said or {}).get("question", ""))[:_MOST]
            if outcome.request is not None and outcome.ended == "answered":
                line["answer"] = outcome.request.answer[:_MOST]
        self.line(line)

    def line(self, said: Mapping[str, Any]) -> None:
        """Write one line; whatever is None is left out."""
        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                **{name: value for name, value in said.items() if value is not None}}  # fmt: skip
        try:
            self._write(orjson.dumps(told, default=str, option=orjson.OPT_APPEND_NEWLINE))
        except (OSError, ValueError, TypeError, orjson.JSONEncodeError) as error:
            self.failures += 1
            if self.failures == 1:
                _log.warning("the request log cannot be written, said once: %s", error)


def open_journal(path: str, *, texts: bool = False) -> Journal:
    """To a file, which grows, or to standard output for ``-``; ``UserError`` where it cannot be
    opened."""  # fmt: skip
    if path == "-":
        out = sys.stdout.buffer

        def write(line: bytes) -> None:
            out.write(line)
            out.flush()

        return Journal(write, texts=texts)
    try:
        file = Path(path).open("ab", buffering=0)  # noqa: SIM115 (lives as long as the process)
    except OSError as error:
        raise UserError(f"cannot write the request log {path}: {error.strerror}") from None
    return Journal(file.write, texts=texts, close=file.close)
