"""OpenTelemetry: a span and measurements for each request, by the conventions, without texts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import httpx
import pytest
from gateways import StopsAt, gateway_of, serving_gateway

from rlbudget.models import load_model
from rlbudget.serve.hooks import Steering
from rlbudget.serve.upstream import look_at
from rlbudget.tasks import load_task
from runs.integrations.toy_server import Toy, serving

pytest.importorskip("opentelemetry.sdk")


def test_a_request_is_a_span_of_its_client_with_what_it_cost() -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from rlbudget.serve.otel import Telemetry

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    question = load_task("embedded", n=1, seed=3).questions[0].question
    parent = "0af7651916cd43dd8448eb211c80319c"
    gateway = gateway_of(StopsAt(16))
    gateway.steering.append(Steering("otel", after=Telemetry(tracers, meters).after))
    with serving(Toy(load_model("embedded"))) as url:
        opens = partial(look_at, url, gateway.settings, tokenizer="embedded")
        with serving_gateway(gateway, opens) as root:
            body = {"model": "toy", "messages": [{"role": "user", "content": question}],
                    "temperature": 0.0, "max_tokens": 300}  # fmt: skip
            found = httpx.post(
                f"{root}/v1/chat/completions", json=body, timeout=60,
                headers={"traceparent": f"00-{parent}-b7ad6b7169203331-01"},
            ).json()  # fmt: skip
    (span,) = spans.get_finished_spans()
    said: Mapping[str, Any] = span.attributes or {}
    usage = found["usage"]
    assert span.name == "chat toy"
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == parent
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.max_tokens"] == 300
    assert said["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    assert said["gen_ai.usage.reasoning.output_tokens"] == reasoning
    assert said["rlbudget.reason"] == found["rlbudget"]["reason"]
    assert question not in str(dict(said))
    data = reader.get_metrics_data()
    assert data is not None
    names = {
        metric.name
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert names >= {"gen_ai.client.token.usage", "gen_ai.server.request.duration"}
    meters.shutdown()
