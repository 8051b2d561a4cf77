"""The store as a part of a gateway: requests noted, feedback taken, records counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from rlbudget.integrations.engine_settings import Settings
from rlbudget.serve.feedback import Signer, feedback_of
from rlbudget.serve.gateway import Gateway, error
from rlbudget.serve.hooks import Arrival, Extra, Outcome, Steering
from rlbudget.serve.incoming import content_of, object_of
from rlbudget.serve.store.store import Store
from rlbudget.serve.store.writer import LostRowError, Writer
from rlbudget.strategies.feedback.log import Feedback, Log, LoggedRequest, now
from rlbudget.strategies.plan import LogSettings
from rlbudget.traces.trace import Trace

_PATIENCE = 5.0
"""seconds that feedback waits to be kept"""


def noting(settings: Settings, store: Store) -> Settings:
    """The plans, whose requests are noted in the store, and in the log that they name."""
    plans = {}
    for name, plan in settings.plans.items():
        audit = plan.audit or LogSettings(None)
        to: Log = store if audit.log is None else Both(audit.opened(), store)
        plans[name] = replace(plan, audit=replace(audit, to=to))
    return replace(settings, plans=plans)


def keeps_texts(settings: Settings) -> bool:
    """Whether a plan asks for questions and answers to be kept."""
    return any(plan.audit is not None and plan.audit.store_text for plan in settings.plans.values())


class Both:
    """A decision log and a store."""

    def __init__(self, first: Log, store: Log) -> None:
        self.store = store
        self._both = (first, store)

    @property
    def store_text(self) -> bool:
        """Whether one of them keeps texts."""
        return any(one.store_text for one in self._both)

    @property
    def failures(self) -> int:
        """Records that were lost."""
        return sum(one.failures for one in self._both)

    def decision(self, served: LoggedRequest) -> None:
        """Note a served request."""
        for one in self._both:
            one.decision(served)

    def audit(self, trace: Trace) -> None:
        """Note the full decode of an audited request."""
        for one in self._both:
            one.audit(trace)


def store_part(
    gateway: Gateway, store: Store, *, heard: Sequence[Callable[[Feedback], None]] = ()
) -> Steering:
    """What stands around the requests of a gateway whose settings are ``noting`` in the store.

    ``heard`` is told of feedback that was kept.
    """
    signer = Signer(store.secret("feedback"))
    gateway.metrics.registry.register(_Counts(store.writer))

    async def before(arrival: Arrival) -> Arrival:
        return replace(arrival, shown={**arrival.shown, "feedback_id": signer.sign(arrival.id)})

    def after(outcome: Outcome) -> None:
        store.forget(outcome.arrival.id)
        if outcome.arrival.shadow and outcome.token_price is not None:
            store.shadow(outcome.arrival.id, _shadow_row(outcome))

    async def feedback(http: HttpRequest) -> Response:
        found = feedback_of(object_of(await content_of(http, gateway.limits)), signer)
        try:
            keeping = asyncio.wrap_future(store.outcome(found))
            await asyncio.wait_for(asyncio.shield(keeping), _PATIENCE)
        except (LostRowError, TimeoutError):
            return error(503, "the store cannot be written: try again", {"retry-after": "5"})
        for tell in heard:
            tell(found)
        told: dict[str, Any] = {"object": "rlbudget.feedback", "request_id": found.request_id}
        if found.comment is not None and not store.store_text:
            told["not_kept"] = {"comment": "texts are kept only with store_text = true"}
        return JSONResponse(told)

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(store.close)

    return Steering(
        "store", before, after, (Extra("/v1/feedback", feedback, ("POST",)),), running, waits=False
    )  # fmt: skip


def _shadow_row(outcome: Outcome) -> dict[str, Any]:
    return {
        "request_id": outcome.arrival.id, "time": now(), "plan": outcome.arrival.wanted.name,
        "token_price": outcome.token_price, "thinking_tokens": outcome.thinking_tokens,
        "answer_tokens": outcome.answer_tokens, "reason": outcome.reason,
        "shadow": None if outcome.shadow is None else dict(outcome.shadow),
    }  # fmt: skip


class _Counts(Collector):
    """What became of the rows, for Prometheus."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def collect(self) -> Iterator[Any]:
        """As they are now."""
        written = self._writer.written
        for name, said, value in (
            ("rows", "Rows written to the store.", written.rows),
            ("lost", "Records that the store could not take; no answer waits for one.",
             written.lost),
            ("faults", "Transactions that failed and were tried again.", written.faults),
        ):  # fmt: skip
            yield CounterMetricFamily(f"rlbudget_store_{name}", said, value)
        yield GaugeMetricFamily(
            "rlbudget_store_waiting", "Rows that wait to be written.", self._writer.depth
        )
