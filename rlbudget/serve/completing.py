"""The way of a completion: read, asked of the parts, steered or passed through, told of."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from rlbudget.decoding.wanted import Wanted
from rlbudget.errors import UserError
from rlbudget.policy.dial import Spot
from rlbudget.serve.answer import GONE, Answer, header_text, headers_of
from rlbudget.serve.chat import Form
from rlbudget.serve.gateway import Gateway, counted, error
from rlbudget.serve.hooks import Arrival, Ended, Outcome, Passage, RefusedError
from rlbudget.serve.incoming import content_of, model_of, object_of, path_of
from rlbudget.serve.pool import Pool
from rlbudget.serve.reasons import check_shape, passes_through
from rlbudget.serve.streamed import Leaving, left
from rlbudget.serve.wishes import OURS, Wishes, unheard, wishes_of
from rlbudget.tasks.conversations import text_of
from rlbudget.tasks.rows import BadRowError

KEY, TOLD = "rlbudget.key", "rlbudget.told"
"""in a request's scope: the name of its key; that the parts are told of it"""
_SECRET = ("authorization", "api-key", "cookie", "proxy-authorization")


async def complete(gateway: Gateway, http: HttpRequest, kind: Literal["chat", "text"]) -> Response:
    """Answer a chat or a text completion; raises as its parts do."""
    begun = time.monotonic()
    content = await content_of(http, gateway.limits)
    body = object_of(content)
    headers = headers_of(http.headers.raw)
    wishes = wishes_of(body, headers, gateway.settings)
    model = str(body.get("model", ""))
    pool = gateway.find(model)
    asked: str | None = "off"
    if not wishes.wanted.off or pool is None or not pool.passes:
        check_shape(body, chat=kind == "chat")  # else the upstream's to judge
        asked = passes_through(body)
    if pool is None:
        there = ", ".join(gateway.backends)
        return error(404, f"no model {model[:80]!r} here; there are: {there}")
    key: str | None = http.scope.get(KEY)
    arrival = _arrival(gateway, pool, wishes, kind, headers, asked, key)
    passage = Passage(gateway.steering, arrival, gateway.metrics)
    http.scope[TOLD] = True

    def over(outcome: Outcome) -> None:
        gateway.keys.spend(key, outcome.prompt_tokens + outcome.tokens)
        passage.end(outcome)

    def unsaid() -> None:
        if not passage.over:  # nobody told: the client left before the first byte
            over(Outcome(passage.arrival, "left", time.monotonic() - begun, GONE))

    async def respond() -> Response:
        try:
            waits = any(part.before is not None and part.waits for part in gateway.steering)
            arrival = await (_entered(passage, http) if waits else passage.enter())
        except RefusedError as told:
            over(Outcome(passage.arrival, "refused", time.monotonic() - begun, told.status))
            return _refused(told)
        if arrival is None:
            return Response(status_code=GONE)
        wanted = arrival.priced(gateway.settings.served[arrival.wanted.name].price_range)
        why = kind_of_why = "off" if wanted.off and pool.passes else asked
        if why is None:
            try:
                steered = await pool.steer(wanted, wishes.body, shadow=arrival.shadow)
            except UserError as fault:
                why, kind_of_why = str(fault), "cannot be steered"
                wanted = replace(wanted, off=True)
            else:
                form = Form(kind, model)
                refused = (*wishes.not_honoured, *unheard(wishes.body))
                answer = Answer(
                    steered, arrival, refused, form, gateway.metrics, over,
                    begun=begun, savings=gateway.saves(arrival.wanted.name),
                )  # fmt: skip
                return await answer.respond(http, body)
        assert kind_of_why is not None
        own = orjson.dumps(wishes.body) if OURS in body else content
        response = await _passed(gateway, pool, http, own, why, kind_of_why, wanted, key)
        ended: Ended = "left" if response.status_code == GONE else "passed"
        over(Outcome(arrival, ended, time.monotonic() - begun, response.status_code))
        return response

    return await counted(gateway, respond(), unsaid)


def _arrival(
    gateway: Gateway, pool: Pool, wishes: Wishes, kind: Literal["chat", "text"],
    headers: Mapping[str, str], asked: str | None, key: str | None,
) -> Arrival:  # fmt: skip
    said = dict(wishes.wanted.said or {})
    known = said.setdefault("request_id", uuid.uuid4().hex)
    if (question := _question(wishes.body)) is not None:
        said.setdefault("question", question)
    wanted = replace(wishes.wanted, said=said)
    spot: Spot | None = None
    if asked is None and not wanted.off:
        spot = pool.members[0].backend.cores[wanted.name].spot(wanted.dial)
    return Arrival(
        id=known, kind=kind, model=str(wishes.body.get("model", "")), wanted=wanted, spot=spot,
        body=wishes.body, headers={n: v for n, v in headers.items() if n not in _SECRET},
        key=key, shadow=gateway.shadow,
    )  # fmt: skip


async def _entered(passage: Passage, http: HttpRequest) -> Arrival | None:
    """Ask parts that may let it wait; None where its client left meanwhile."""
    entering = asyncio.ensure_future(passage.enter())
    leaving: asyncio.Future[None] | None = None
    try:
        await asyncio.sleep(0)
        if not entering.done():  # it has to wait: only then its client is watched
            leaving = asyncio.ensure_future(left(http))
            await asyncio.wait({entering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return entering.result() if entering.done() else None
    finally:
        waiting = [task for task in (entering, leaving) if task is not None and not task.done()]
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.gather(*waiting, return_exceptions=True)


def _question(body: Mapping[str, Any]) -> str | None:
    """The text of a chat that is a single question."""
    messages = body.get("messages")
    if not isinstance(messages, list) or len(messages) != 1:
        return None
    message = messages[0]
    if not isinstance(message, Mapping) or message.get("role") != "user":
        return None
    content = message.get("content")
    try:
        return text_of(content) if content else None
    except BadRowError:
        return None


def _refused(refused: RefusedError) -> Response:
    headers = None
    if refused.retry_after is not None:
        headers = {"retry-after": f"{max(refused.retry_after, 0):.0f}"}
    return error(refused.status, str(refused), headers)


async def forward(gateway: Gateway, http: HttpRequest, why: str) -> Response:
    """Pass a request through that is no completion."""
    content = await content_of(http, gateway.limits)
    model = model_of(content) if len(gateway.backends) > 1 else ""
    pool = gateway.find(model) or next(iter(gateway.backends.values()))
    key: str | None = http.scope.get(KEY)
    return await counted(gateway, _passed(gateway, pool, http, content, why, why, key=key))


async def _passed(
    gateway: Gateway,
    pool: Pool,
    http: HttpRequest,
    content: bytes,
    why: str,
    kind_of_why: str,
    wanted: Wanted | None = None,
    key: str | None = None,
) -> Response:
    path = path_of(http)
    gateway.metrics.passed.labels(kind_of_why).inc()
    told = {"x-rlbudget-passed-through": header_text(why)}
    leaving = Leaving(http)
    try:
        response = await pool.forward(
            http.method,
            path,
            http.url.query,
            headers_of(http.headers.raw),
            content,
            told,
            wanted,
            None if key is None else partial(gateway.keys.spend, key),
        )
    except asyncio.CancelledError:
        if not leaving.settled():
            raise
        response = Response(status_code=GONE)
    finally:
        leaving.end()
    gateway.metrics.requests.labels("passed", str(response.status_code // 100) + "xx").inc()
    return response
