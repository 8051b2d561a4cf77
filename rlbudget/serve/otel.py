"""Spans and metrics of OpenTelemetry's conventions for generative AI: the extra ``rlbudget[otel]``.

Where they go is said by OpenTelemetry's own environment (``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``). A request's ``traceparent`` is its span's
parent. No text of a request is in any of it. The conventions are still in development.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from rlbudget.errors import missing_extra
from rlbudget.serve.hooks import Outcome, Steering

try:
    from opentelemetry import propagate, trace
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    _MISSING: str | None = None
except ModuleNotFoundError as missing:
    _MISSING = str(missing.name)

OPERATIONS = {"chat": "chat", "text": "text_completion"}
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


class Telemetry:
    """Turns outcomes into spans and measurements of these providers."""

    def __init__(self, tracers: Any, meters: Any) -> None:
        self._tracer = tracers.get_tracer("rlbudget")
        meter = meters.get_meter("rlbudget")
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens by kind.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )  # fmt: skip
        self._seconds = meter.create_histogram(
            "gen_ai.server.request.duration", "s", "From a request to the end of its answer.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )  # fmt: skip
        self._first = meter.create_histogram(
            "gen_ai.server.time_to_first_token", "s", "To the first text of an answer.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )  # fmt: skip

    def after(self, outcome: Outcome) -> None:
        """A request is over."""
        arrival = outcome.arrival
        operation = OPERATIONS[arrival.kind]
        known: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "rlbudget",
            "gen_ai.request.model": arrival.model,
        }
        if outcome.ended in ("failed", "refused"):
            known["error.type"] = str(outcome.status)
        self._seconds.record(outcome.seconds, known)
        if outcome.first_seconds is not None:
            self._first.record(outcome.first_seconds, known)
        said = dict(known)
        if outcome.token_price is not None:
            counted = {"input": outcome.prompt_tokens, "output": outcome.tokens}
            for kind, tokens in counted.items():
                self._tokens.record(tokens, {**known, "gen_ai.token.type": kind})
            said |= {
                "gen_ai.usage.input_tokens": outcome.prompt_tokens,
                "gen_ai.usage.output_tokens": outcome.tokens,
                "gen_ai.usage.reasoning.output_tokens":
                    outcome.thinking_tokens + outcome.probe_tokens,
                "rlbudget.token_price": outcome.token_price,
                "rlbudget.audited": outcome.audited,
            }  # fmt: skip
        more = {
            "gen_ai.request.max_tokens":
                arrival.body.get("max_completion_tokens") or arrival.body.get("max_tokens"),
            "gen_ai.request.temperature": arrival.body.get("temperature"),
            "gen_ai.request.seed": arrival.body.get("seed"),
            "rlbudget.request_id": arrival.id, "rlbudget.ended": outcome.ended,
            "rlbudget.policy": arrival.wanted.name, "rlbudget.reason": outcome.reason,
            "rlbudget.arm": arrival.arm, "rlbudget.stop_probability": outcome.stop_probability,
            "rlbudget.saved_tokens": outcome.saved_tokens,
        }  # fmt: skip
        said |= {name: value for name, value in more.items() if value is not None}
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{operation} {arrival.model}", context=propagate.extract(arrival.headers),
            kind=trace.SpanKind.SERVER, attributes=said,
            start_time=end - int(outcome.seconds * 1e9),
        )  # fmt: skip
        if "error.type" in known:
            span.set_status(trace.StatusCode.ERROR)
        span.end(end)


def otel_part() -> Steering:
    """The part that exports by OTLP over HTTP, as OpenTelemetry's environment says.

    Raises ``UserError`` where the extra is not installed.
    """
    if _MISSING is not None:
        raise missing_extra("otel", _MISSING)
    resource = Resource.create({"service.name": "rlbudget"})
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    meters = MeterProvider(
        [PeriodicExportingMetricReader(OTLPMetricExporter())], resource, shutdown_on_exit=False
    )

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        yield
        tracers.shutdown()
        meters.shutdown()

    return Steering("otel", after=Telemetry(tracers, meters).after, running=running)
