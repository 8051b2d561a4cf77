"""A steered request as an HTTP answer: streamed or whole, counted, given up with its client."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from rlbudget.decoding.decoded import Decoded
from rlbudget.errors import UserError
from rlbudget.models.site import KeyRefusedError, ServerError
from rlbudget.serve.chat import DONE, Form, error_body, error_event
from rlbudget.serve.hooks import Arrival, Ended, Outcome
from rlbudget.serve.metrics import Metrics
from rlbudget.serve.pool import Answering, Beside
from rlbudget.serve.savings import Savings
from rlbudget.serve.shown import Piece
from rlbudget.serve.streamed import Leaving, Streamed, left

_log = logging.getLogger("rlbudget.serve")
GONE = 499
"""what the log says of a request whose client left"""
_MOST_HEADER = 200
_CUT = ("policy", "loop", "max_tokens", "escalate")
"""reasons of a thinking that was ended before its end"""


class Answer:
    """One answer; ``respond`` writes it."""

    def __init__(
        self, steered: Answering, arrival: Arrival, not_honoured: Sequence[str], form: Form,
        metrics: Metrics, over: Callable[[Outcome], None], *, begun: float,
        savings: Savings,
    ) -> None:  # fmt: skip
        self._steered, self._arrival, self._form = steered, arrival, form
        self._not_honoured, self._metrics, self._over = not_honoured, metrics, over
        self._begun, self._savings = begun, savings
        self._first: float | None = None
        self._shadow: dict[str, Any] | None = None

    async def respond(self, http: HttpRequest, body: Mapping[str, Any]) -> Response:
        """Streamed where the body asks for it, else whole."""
        if body.get("stream"):
            with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return await self._streamed(http, with_usage)
        return await self._whole(http)

    async def _streamed(self, http: HttpRequest, with_usage: bool) -> Response:
        """The first piece is awaited: until then a fault has a status of its own."""
        pieces = self._steered.pieces()
        first: list[Piece] = []
        leaving = Leaving(http)
        try:
            first = await anext(pieces, [])
        except BaseException as error:
            leaving.end()
            await pieces.aclose()
            if isinstance(error, Exception):
                return self._failed(error)
            self._count("left")
            if isinstance(error, asyncio.CancelledError) and leaving.settled():
                return Response(status_code=GONE)
            raise
        self._first = time.monotonic() - self._begun
        self._metrics.first.observe(self._first)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **self._headers()}
        return Streamed(self._events(first, pieces, with_usage), headers, leaving)

    async def _events(
        self, first: list[Piece], pieces: AsyncGenerator[list[Piece], None], with_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        ended: Ended = "left"
        try:
            async with aclosing(pieces):
                yield self._form.chunks(first)
                async for found in pieces:
                    yield self._form.chunks(found)
            await self._look_at_shadow()
            yield self._form.last(self._steered.finish, self.ours())
            if with_usage:
                yield self._form.usage(self.usage())
            yield DONE
            ended = "answered"
        except Exception as error:
            ended = "failed"
            yield error_event(*fault_of(error))
        finally:
            self._count(ended)

    async def _whole(self, http: HttpRequest) -> Response:
        reading = asyncio.ensure_future(self._read())
        leaving = asyncio.ensure_future(left(http))
        try:
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                self._count("left")
                return Response(status_code=GONE)
            found = reading.result()
        except Exception as error:
            return self._failed(error)
        finally:
            for task in (reading, leaving):
                task.cancel()
            await asyncio.gather(reading, leaving, return_exceptions=True)
        await self._look_at_shadow()
        self._count("answered")
        ours = self.ours()
        return Response(
            self._form.whole(found, self._steered.finish, self.usage(), ours),
            media_type="application/json", headers=self._headers(ours),
        )  # fmt: skip

    async def _read(self) -> list[Piece]:
        found: list[Piece] = []
        async with aclosing(self._steered.pieces()) as pieces:
            async for some in pieces:
                found += some
        return found

    def _failed(self, error: Exception) -> Response:
        status, said = fault_of(error)
        self._count("failed", status)
        return Response(error_body(status, said), status, media_type="application/json")

    def _count(self, ended: Ended, status: int = 200) -> None:
        metrics, request = self._metrics, self._steered.request
        metrics.requests.labels("steered", ended).inc()
        seconds = time.monotonic() - self._begun
        metrics.whole.observe(seconds)
        ending = request.ending
        metrics.reasons.labels(ending.reason or "left").inc()
        metrics.thinking.observe(ending.thinking_tokens)
        beside = self._beside
        for kind, tokens in (
            ("prompt", self._steered.prompt_tokens + beside.prompt_tokens),
            ("thinking", ending.thinking_tokens + beside.thinking_tokens),
            ("probe", ending.probe_tokens + beside.probe_tokens),
            ("answer", ending.answer_tokens + beside.answer_tokens),
        ):
            metrics.tokens.labels(kind).inc(tokens)
        self._learn(ended)
        if saved := self._saved():
            metrics.saved.inc(saved)
        self._over(
            Outcome(
                self._arrival, ended, seconds, GONE if ended == "left" else status,
                token_price=self._price, reason=ending.reason,
                stop_probability=ending.stop_probability,
                prompt_tokens=self._steered.prompt_tokens + beside.prompt_tokens,
                thinking_tokens=ending.thinking_tokens, probe_tokens=ending.probe_tokens,
                answer_tokens=ending.answer_tokens, saved_tokens=self._saved(),
                audited=request.audited, shadow=self._shadow, first_seconds=self._first,
                request=request, beside_tokens=beside.tokens,
            )
        )  # fmt: skip

    def _learn(self, ended: Ended) -> None:
        """A thinking that nobody would have ended tells how long thinkings are."""
        request = self._steered.request
        whole = request.audited or self._arrival.shadow
        if ended == "answered" and whole and request.ending.reason == "natural":
            self._savings.full(request.ending.thinking_tokens)

    def _saved(self) -> float | None:
        """Thinking tokens that the stop saved, estimated; None where nothing is known."""
        ending = self._steered.request.ending
        if ending.reason not in _CUT:
            return None if ending.reason is None else 0.0
        return self._savings.saved(ending.thinking_tokens, ending.answer_tokens)

    async def _look_at_shadow(self) -> None:
        """Compare the answer that a cut would have given with the one that was given."""
        request = self._steered.request
        if request.shadowed is None:
            return
        stop, answer = request.shadowed
        same: bool | None = answer == request.answer
        if not same:
            try:
                same = await asyncio.to_thread(request.same_answer, answer)
            except Exception as error:  # nobody's answer depends on it
                _log.warning("a cut in shadow cannot be judged: %s", error)
                same = None
        saved = request.ending.thinking_tokens - stop.thinking_tokens
        self._shadow = {
            "thinking_tokens": stop.thinking_tokens, "saved_tokens": saved,
            "reason": stop.reason, "answer": answer, "same_answer": same,
        }  # fmt: skip
        judged = {True: "same", False: "other", None: "unknown"}[same]
        self._metrics.shadow.labels(judged).inc()
        self._metrics.shadow_tokens.inc(max(saved, 0))

    @property
    def _second(self) -> Decoded | None:
        """What a second model did, where it was asked."""
        request = self._steered.request
        return request.decoded().second if request.settled else None

    @property
    def _beside(self) -> Beside:
        """What other models did."""
        if (found := self._steered.beside) is not None:
            return found
        if (second := self._second) is None:
            return Beside()
        told = {
            "thinking_tokens": second.thinking_tokens, "probe_tokens": second.probe_tokens,
            "answer_tokens": second.answer_tokens, "reason": second.reason,
        }  # fmt: skip
        return Beside(
            0, second.thinking_tokens, second.probe_tokens, second.answer_tokens, {"second": told}
        )

    @property
    def _price(self) -> float:
        """That the request was served at."""
        beside = self._steered.beside
        own = None if beside is None else beside.token_price
        return self._steered.request.token_price if own is None else own

    def usage(self) -> dict[str, Any]:
        """What it cost, in OpenAI's form: every token is counted, trial answers too."""
        ending, beside = self._steered.request.ending, self._beside
        read = self._steered.prompt_tokens + beside.prompt_tokens
        thought = ending.thinking_tokens + ending.probe_tokens
        thought += beside.thinking_tokens + beside.probe_tokens
        spent = thought + ending.answer_tokens + beside.answer_tokens
        return {
            "prompt_tokens": read,
            "completion_tokens": spent,
            "total_tokens": read + spent,
            "completion_tokens_details": {"reasoning_tokens": thought},
        }

    def ours(self) -> dict[str, Any]:
        """What the gateway did, for the client."""
        request, wanted = self._steered.request, self._arrival.wanted
        ending = request.ending
        told: dict[str, Any] = {
            "stopped": ending.reason == "policy",
            "reason": ending.reason,
            "thinking_tokens": ending.thinking_tokens,
            "probe_tokens": ending.probe_tokens,
            "answer_tokens": ending.answer_tokens,
            "stop_probability": ending.stop_probability,
            "token_price": self._price,
            "policy": wanted.name,
            "audited": request.audited,
        }
        if (saved := self._saved()) is not None:
            told["estimated_saved_tokens"] = round(saved, 1)
        if request.request_id is not None:
            told["request_id"] = request.request_id
        asked = {"effort": wanted.dial.effort, "max_em_loss": wanted.dial.max_em_loss,
                 "answer_worth": wanted.dial.answer_worth,
                 "thinking_budget": wanted.thinking_budget}  # fmt: skip
        told |= {name: value for name, value in asked.items() if value is not None}
        if self._arrival.arm is not None:
            told["arm"] = self._arrival.arm
        if wanted.off:
            told["off"] = True
        if self._not_honoured:
            told["not_honoured"] = list(self._not_honoured)
        if self._shadow is not None:
            told["shadow"] = self._shadow
        if ending.message:
            told["message"] = ending.message
        return {**self._arrival.shown, **told, **self._beside.told}

    def _headers(self, ours: Mapping[str, Any] | None = None) -> dict[str, str]:
        wanted = self._arrival.wanted
        told: dict[str, Any] = {"policy": wanted.name, "token-price": f"{self._price:.6g}"}
        told["request-id"] = self._arrival.id
        if self._arrival.arm is not None:
            told["arm"] = self._arrival.arm
        if ours is not None:
            told |= {
                "stopped": str(ours["stopped"]).lower(),
                "reason": ours["reason"],
                "thinking-tokens": ours["thinking_tokens"],
                "estimated-saved-tokens": ours.get("estimated_saved_tokens", ""),
            }
        return {f"x-rlbudget-{name}": header_text(value) for name, value in told.items()}


def fault_of(error: Exception) -> tuple[int, str]:
    """The status of a request that met an error, and what its client is told."""
    if isinstance(error, ServerError | KeyRefusedError):  # the key is the gateway's own
        return 502, str(error)
    if isinstance(error, UserError):
        return 400, str(error)
    _log.error("a request broke down", exc_info=error)
    return 500, f"the gateway broke down: {type(error).__name__}"


def header_text(value: object) -> str:
    """What a header can hold of a value: printable ASCII, no line break."""
    shown = str(value).encode("ascii", "replace").decode()
    return "".join(one if one.isprintable() else " " for one in shown)[:_MOST_HEADER].strip()


def headers_of(pairs: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Header names in lower case -> values."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}
