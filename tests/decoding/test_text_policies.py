"""A policy of the text alone: what it saw in a replay is what it sees live, in every shell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from frozen_nets import policy_for
from tiny_model import save_tiny_model, tiny_task

from rlbudget.agents.training import train_on
from rlbudget.decoding.annotate import annotate
from rlbudget.decoding.core import LOCAL, bind
from rlbudget.decoding.decode import decode
from rlbudget.decoding.device.slots import Slots
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.integrations.openai import decode_once
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.controller import Controller
from rlbudget.policy.observation import features_of
from rlbudget.policy.replay import replay
from rlbudget.signals.text import TEXT_SIGNALS, TextWindow
from rlbudget.signals.tokens import SIGNALS
from rlbudget.tasks import load_task
from rlbudget.tasks.scorers import extracted
from rlbudget.traces.store import load_table, load_traces
from rlbudget.traces.table import TraceTable
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)

N, CAP, PRICE = 40, 48, 1e-3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    return load_model(str(save_tiny_model(tmp_path_factory.mktemp("model"))), profile="embedded")


@pytest.fixture(scope="module")
def traces(model: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("traces")
    record(
        model, tiny_task(N), out, max_tokens=CAP, batch_size=20, probe_tokens=0, store_text=True,
        text_signals=True,
    )  # fmt: skip
    return out


def text_alone(table: TraceTable) -> TraceTable:
    """The traces as a server without log-probabilities would have given them."""
    return replace(table, signals={name: table.signals[name] for name in TEXT_SIGNALS})


def test_recording_adds_the_signals_of_the_text_and_changes_no_other(
    model: TransformersModel, traces: Path, tmp_path: Path
) -> None:
    record(model, tiny_task(N), tmp_path, max_tokens=CAP, batch_size=20, probe_tokens=0)
    plain = {trace.trace_id: trace for trace in load_traces(tmp_path)}
    for trace in load_traces(traces):
        for point, other in zip(trace.checkpoints, plain[trace.trace_id].checkpoints, strict=True):
            assert point.signals.keys() == {*other.signals, *TEXT_SIGNALS}
            assert {n: point.signals[n] for n in other.signals} == other.signals
    table = load_table(traces)
    assert features_of(table, "free") == features_of(load_table(tmp_path), "free")


def test_replay_equals_live_for_the_text_alone(model: TransformersModel, traces: Path) -> None:
    table = text_alone(load_table(traces))
    policy = policy_for(table, "free")
    assert not any(name.partition(".")[0] in SIGNALS for name in policy.features)
    stops = replay(policy, table, PRICE).stops
    by_id = {trace.trace_id: trace for trace in load_traces(traces)}
    for place, trace_id in enumerate(table.trace_ids.tolist()):
        trace = by_id[trace_id]
        live = decode(
            model, trace.question, policy, token_price=PRICE, seed=trace.meta["row_seed"],
            max_tokens=CAP,
        )  # fmt: skip
        recorded = trace.checkpoints[stops[place]].exit if stops[place] >= 0 else trace.final
        assert live.stopped == (stops[place] >= 0)
        assert live.answer == extracted(recorded.answer)
        assert live.message is None
    assert 5 <= (stops >= 0).sum() <= N - 5


def test_a_controller_reads_the_text_of_each_token_and_needs_no_log_probabilities(
    model: TransformersModel, traces: Path
) -> None:
    table = text_alone(load_table(traces))
    policy = policy_for(table, "free")
    stops = replay(policy, table, PRICE).stops
    by_id = {trace.trace_id: trace for trace in load_traces(traces)}
    for place, trace_id in enumerate(table.trace_ids.tolist()):
        trace = by_id[trace_id]
        cuts = dict(
            zip((c.thinking_tokens for c in trace.checkpoints), trace.meta["cuts"], strict=True)
        )
        control = Controller(policy, token_price=PRICE, stride=8)
        seen, at = 0, -1
        for token in range(1, max(cuts, default=0) + 1):
            # All the text of a stride in its last token: pieces make no difference.
            text = trace.meta["thinking"][seen : cuts[token]] if token in cuts else ""
            seen = cuts.get(token, seen)
            decision = control.push(
                None, (False,) * 3, text=text, inside_character=token not in cuts
            )
            if decision is not None and decision.stop and at < 0:
                at = list(cuts).index(token)
        assert at == stops[place]
        assert control.failed is None


def test_a_controller_that_reads_text_says_where_none_comes(traces: Path) -> None:
    policy = policy_for(text_alone(load_table(traces)), "free")
    control = Controller(policy, token_price=PRICE, stride=8)
    control.push(None, (False,) * 3)
    assert control.failed is not None
    assert "reads the text" in control.failed


def test_a_runner_that_reads_no_text_refuses_the_policy(
    model: TransformersModel, traces: Path
) -> None:
    policy = policy_for(text_alone(load_table(traces)), "free")
    core = bind(
        policy, model.tokenizer, LOCAL, eos_ids=[2], vocabulary=model.vocabulary,
        profile="embedded", token_price=PRICE,
    )  # fmt: skip
    with pytest.raises(UserError, match="reads no text"):
        Slots(core, 2, 64, torch.device("cpu"))


def test_training_reads_the_text_where_it_is_told_to_or_has_nothing_else(
    model: TransformersModel, traces: Path, tmp_path: Path
) -> None:
    settings = {"total_timesteps": 256, "token_price": (1e-4, 1e-2)}
    result = train_on(traces, tmp_path / "run", signals="text", **settings)  # type: ignore[arg-type]
    found = json.loads((result.run_dir / "run.json").read_text())
    assert {name.partition(".")[0] for name in found["features"]} == {
        "thinking_tokens", *TEXT_SIGNALS,
    }  # fmt: skip


def test_annotating_reads_the_same_signals_of_the_text(
    model: TransformersModel, tmp_path: Path
) -> None:
    thinking = "3 + 4 is 7, so 7. wait, let me check: 4 + 3 is 7. yes, so the answer is 7."
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"question": "3 + 4?", "thinking": thinking, "answer": "7"}) + "\n")
    annotate(model, log, tmp_path / "out", probe_tokens=0)
    (trace,) = load_traces(tmp_path / "out")
    ids, window, seen = model.tokenizer(thinking)["input_ids"], TextWindow(), 0
    assert len(trace.checkpoints) > 3
    for point in trace.checkpoints:
        text = model.tokenizer.decode(ids[: point.thinking_tokens])
        window.push(text[seen:])
        seen = len(text)
        expected = window.read()
        assert {name: point.signals[name] for name in TEXT_SIGNALS} == expected
    assert expected["text_claim_streak"] >= 1


def test_a_server_without_log_probabilities_is_stopped_where_the_replay_stops(
    tmp_path: Path,
) -> None:
    embedded = load_model("embedded")
    task = load_task("embedded", n=12, seed=9)
    record(embedded, task, tmp_path, temperature=0.0, probe_tokens=0, text_signals=True)
    table = text_alone(load_table(tmp_path))
    policy = policy_for(table, "free")
    stops = replay(policy, table, PRICE).stops
    by_id = {trace.trace_id: trace for trace in load_traces(tmp_path)}
    with serving(Toy(embedded, logprobs=0)) as url:
        for place, trace_id in enumerate(table.trace_ids.tolist()):
            trace = by_id[trace_id]
            live = decode_once(
                url, trace.question, policy, "embedded", profile="embedded", token_price=PRICE,
                temperature=0.0,
            )  # fmt: skip
            recorded = trace.checkpoints[stops[place]].exit if stops[place] >= 0 else trace.final
            assert live.message is None
            assert live.stopped == (stops[place] >= 0)
            assert live.answer == extracted(recorded.answer)
    assert (stops >= 0).any()
